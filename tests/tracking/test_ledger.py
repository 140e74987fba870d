import hashlib
import time

import pytest

from xray_pneumonia.tracking import stored_runs
from xray_pneumonia.tracking.ledger import opened_before, openings, record_opening
from xray_pneumonia.tracking.store import TrackingSettings, open_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    home = tmp_path_factory.mktemp("store")
    settings = TrackingSettings(uri=None, experiment_name="xray", run_name=None, system_metrics=False, required=False)
    return open_store(settings, home=home)


def opened(store, split="test", fingerprint="f" * 64, contents="", experiment="xray", films=()):
    return record_opening(
        store, split=split, fingerprint=fingerprint, contents=contents or f"contents of {fingerprint}",
        experiment=experiment, config_sha256="c", runs=["r"], films=films,
    )  # fmt: skip


def test_openings_are_counted_by_image_and_outlive_deletion(store):
    start = int(time.time() * 1000)
    assert opened(store, split="val", fingerprint="a") == []
    assert len(opened(store, fingerprint="a")) == 1
    found = opened(store, split="external", fingerprint="a")
    assert [one.split for one in found] == ["test", "external"]
    assert "@" in found[0].who
    assert len(opened(store, fingerprint="b")) == 1
    assert len(opened(store, fingerprint="renamed", contents="contents of b")) == 2
    home = store.client.get_experiment_by_name("ledger")
    store.client.delete_run(store.client.search_runs([home.experiment_id])[0].info.run_id)
    assert len(openings(store)) == 4
    assert opened_before(store, started=start) == 0
    assert opened_before(store, started=int(time.time() * 1000) + 1) == 4


def test_a_single_known_image_is_an_opening_in_any_experiment_of_the_store(store, monkeypatch):
    monkeypatch.setattr(stored_runs, "PAGE", 3)  # entries come in pages
    films = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(1300)]
    assert len(opened(store, fingerprint="first", films=films[:624])) == 1
    fewer = opened(store, split="external", fingerprint="fewer", films=films[:623], experiment="another")
    assert [(one.experiment, one.shared) for one in fewer] == [("xray", 623), ("another", 623)]
    assert len(opened(store, fingerprint="other", films=films[624:])) == 1
    both = opened(store, fingerprint="both", films=[films[0], films[-1]])
    assert [one.shared for one in both] == [1, 1, 1, 2]
    again = opened(store, fingerprint="again", contents="contents of other", films=films[624:])
    assert [one.shared for one in again] == [676, 1, 676]
    assert not openings(store)[-1].films  # a set is listed once
    assert opened_before(store, started=int(time.time() * 1000) + 1) >= 5
