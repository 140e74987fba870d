import time

import pytest

from xray_pneumonia.tracking.ledger import opened_before, openings, record_opening
from xray_pneumonia.tracking.store import TrackingSettings, open_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    home = tmp_path_factory.mktemp("store")
    settings = TrackingSettings(uri=None, experiment_name="xray", run_name=None, system_metrics=False, required=False)
    return open_store(settings, home=home)


def opened(store, split="test", fingerprint="f" * 64, contents="", experiment="xray"):
    return record_opening(
        store, split=split, fingerprint=fingerprint, contents=contents or f"contents of {fingerprint}",
        experiment=experiment, config_sha256="c", runs=["r"],
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
    assert opened_before(store, experiment="xray", started=start) == 0
    assert opened_before(store, experiment="xray", started=int(time.time() * 1000) + 1) == 4
    assert opened_before(store, experiment="other", started=int(time.time() * 1000) + 1) == 0
