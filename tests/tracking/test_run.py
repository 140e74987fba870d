"""A run: its status tells the truth, and what it holds can be read back."""

import hashlib
import signal
import time

import pytest

from xray_pneumonia.errors import Busy, Stopped
from xray_pneumonia.tracking.run import start_run
from xray_pneumonia.tracking.store import TrackingSettings, open_store
from xray_pneumonia.tracking.stored_runs import get
from xray_pneumonia.tracking.sync import sync


@pytest.fixture
def store(home):
    settings = TrackingSettings(uri=None, experiment_name="runs", run_name=None, system_metrics=False, required=False)
    return open_store(settings, home=home)


def history(store, run, metric):
    return get(store, run.run_id).history(metric)


def begin(store):
    return start_run(store, name="n", tags={"verb": "test"}, system_metrics=False)


def test_finished_and_complete(store):
    with begin(store) as run:
        run.log_config("seed: 0\n")
        run.log_params({f"key{i}": "x" * 500 for i in range(130)})
        run.log_metrics({"val/auroc": 0.9}, step=1)
        run.log_metrics({"val/auroc": 0.95}, step=2)
        run.log_dataset(name="xrays", digest="d" * 64, source="/data", stage="train")
        assert run.metric_history(["val/auroc"]) == {"val/auroc": [(1, 0.9), (2, 0.95)]}
    found = store.client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert len(found.data.params) == 130
    assert len(found.data.params["key0"]) == 500
    assert history(store, run, "val/auroc") == [(1, 0.9), (2, 0.95)]
    assert found.inputs.dataset_inputs[0].dataset.digest == "d" * 36
    listed = [artifact.path for artifact in store.client.list_artifacts(run.run_id)]
    assert listed == ["config.yaml"]
    assert found.data.tags["config_sha256"] == hashlib.sha256(b"seed: 0\n").hexdigest()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("boom"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (Stopped(signal.SIGTERM), "KILLED"),
        (SystemExit(0), "KILLED"),
    ],
)
def test_the_status_tells_the_truth(store, error, status):
    with pytest.raises(type(error)), begin(store) as run:
        raise error
    found = store.client.get_run(run.run_id)
    assert found.info.status == status
    assert type(error).__name__ in found.data.tags["reason"]
    assert (run.folder / "traceback.txt").exists() is (status == "FAILED")


def test_a_store_that_fails_for_a_while_loses_no_metric(store, monkeypatch):
    with begin(store) as run:
        with monkeypatch.context() as patch:
            patch.setattr(type(store.client), "log_batch", lambda *_, **__: (_ for _ in ()).throw(OSError("away")))
            run.log_metrics({"val/loss": 0.5}, step=1)
            deadline = time.monotonic() + 30
            while not run.sender.problem:  # the attempt that fails may be the last one otherwise
                assert time.monotonic() < deadline
                time.sleep(0.01)
        run.log_metrics({"val/loss": 0.4}, step=2)
    assert history(store, run, "val/loss") == [(1, 0.5), (2, 0.4)]


def test_a_run_whose_end_a_full_disk_did_not_take_stays_open(store, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    with begin(store) as run:
        run.log_metrics({"val/loss": 0.5}, step=1)
        monkeypatch.setattr("xray_pneumonia.tracking.spool._write", full)
    monkeypatch.undo()
    assert f"run {run.run_id}: unsynced" in caplog.text
    assert get(store, run.run_id).status == "RUNNING"
    synced = {
        one.run_id: (one.status, one.problem) for one in sync(store.uri, store.home)
    }  # other tests share the home
    assert synced[run.run_id] == ("KILLED", "")
    assert history(store, run, "val/loss") == [(1, 0.5)]


def test_a_resumed_run_keeps_what_it_logged_before_and_repeats_nothing(store):
    with begin(store) as run:
        run.log_metrics({"val/loss": 0.5}, step=1)
    with start_run(store, name=None, tags={}, system_metrics=False, run_id=run.run_id) as again:
        again.log_metrics({"val/loss": 0.9}, step=1)
        again.log_metrics({"val/loss": 0.4}, step=2)
        assert again.metric_history(["val/loss"]) == {"val/loss": [(1, 0.5), (2, 0.4)]}
    assert history(store, run, "val/loss") == [(1, 0.5), (2, 0.4)]
    assert store.client.get_run(run.run_id).data.tags["resumed"] == "1"


def test_a_run_that_another_process_has_open_is_not_resumed(store):
    with begin(store) as run, pytest.raises(Busy, match=run.run_id):
        start_run(store, name=None, tags={}, system_metrics=False, run_id=run.run_id).__enter__()
