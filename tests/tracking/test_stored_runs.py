"""Runs are found and read back; `tests/security/test_stored_runs.py` has those that were altered."""

import pytest

from xray_pneumonia.errors import InputError
from xray_pneumonia.tracking.run import start_run
from xray_pneumonia.tracking.store import TrackingSettings, open_store
from xray_pneumonia.tracking.stored_runs import find, get, read_run


@pytest.fixture
def store(home):
    settings = TrackingSettings(uri=None, experiment_name="read", run_name=None, system_metrics=False, required=False)
    return open_store(settings, home=home)


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


def test_runs_are_found_by_tags_with_quotes_and_by_status(store):
    tag = {"sweep.name": "it's"}
    with start_run(store, name="one", tags=tag, system_metrics=False) as run:
        run.log_metrics({"val/auroc": 0.5}, step=1)
        assert [one.run_id for one in find(store, tag, status="RUNNING")] == [run.run_id]
    [found] = find(store, tag)
    assert (found.run_id, found.status, found.metrics) == (run.run_id, "FINISHED", {"val/auroc": 0.5})
    assert get(store, run.run_id).history("val/auroc") == [(1, 0.5)]
    assert found.local_folder() == run.folder.resolve()
