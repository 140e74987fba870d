import time

import pytest

from xray_pneumonia.errors import InputError
from xray_pneumonia.tracking.ledger import opened_before, openings, record_opening
from xray_pneumonia.tracking.run import start_run
from xray_pneumonia.tracking.store import TrackingSettings, open_store
from xray_pneumonia.tracking.stored_runs import read_run


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


def finished(store):
    with start_run(store, name="one", tags={}, system_metrics=False) as run:
        run.log_config("seed: 0\n")
    return run


def test_a_run_is_read_back(store):
    run = finished(store)
    stored = read_run(store, run.run_id)
    assert (stored.name, stored.config, stored.status) == ("one", "seed: 0\n", "FINISHED")
    assert stored.artifact("config.yaml").read_text() == "seed: 0\n"
    with pytest.raises(InputError, match="no artifact"):
        stored.artifact("nothing.csv")
    with pytest.raises(InputError, match="holds no model"):
        stored.bundle()


def test_an_altered_config_is_refused(store):
    run = finished(store)
    (run.folder / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(InputError, match="config_sha256"):
        read_run(store, run.run_id)


@pytest.mark.parametrize("run_id", ["", "abc", "../../etc/passwd", "G" * 32])
def test_what_is_no_run_id_is_refused(store, run_id):
    with pytest.raises(InputError, match="32 hex digits"):
        read_run(store, run_id)


def test_missing_unfinished_and_deleted_runs_are_refused(store):
    with pytest.raises(InputError, match="no such run"):
        read_run(store, "0" * 32)
    made = store.client.create_run(store.experiment_id)
    with pytest.raises(InputError, match="RUNNING, not FINISHED"):
        read_run(store, made.info.run_id)
    gone = finished(store)
    store.client.delete_run(gone.run_id)
    with pytest.raises(InputError, match="was deleted"):
        read_run(store, gone.run_id)
