"""Sending: one sender at a time, nothing twice, and a spool that was moved is sent where it lies now."""

import shutil
import threading
from types import SimpleNamespace

import pytest

from xray_pneumonia.tracking import sync
from xray_pneumonia.tracking.locations import sqlite_uri
from xray_pneumonia.tracking.replay import Replay
from xray_pneumonia.tracking.run import start_run
from xray_pneumonia.tracking.spool import Spool, spools
from xray_pneumonia.tracking.store import TrackingSettings, mlflow_client, open_store


class Stuck:
    """A store that answers when it is told to."""

    def __init__(self, spool):
        self.spool, self.asked, self.answers, self.progressed = spool, threading.Event(), threading.Event(), 0.0

    def send_unsent(self, *, unsure):
        self.asked.set()
        assert self.answers.wait(30)
        for entry in self.spool.entries():
            self.spool.mark_sent(entry.end)


def test_an_attempt_under_way_is_awaited_before_another_process_sends(tmp_path, monkeypatch):
    monkeypatch.setattr(sync, "STUCK", 0.2)
    spool = Spool(tmp_path / "journal" / "a")
    assert spool.acquire()
    spool.append(("tags", {"a": "1"}))
    store = Stuck(spool)
    sender = sync.Sender(spool, store, unsure=False)
    assert store.asked.wait(30)
    assert not sender.finish()
    assert not Spool(spool.folder).acquire()  # two senders would make two runs of one
    store.answers.set()
    sender._thread.join(30)
    assert not spool.folder.exists()


class Gullible:
    """A store that keeps whatever it is given, as often as it is given."""

    def __init__(self):
        self.metrics = []

    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        self.metrics += metrics

    def get_metric_history(self, run_id, name):
        return [metric for metric in self.metrics if metric.key == name]


@pytest.mark.parametrize(("unsure", "copies"), [(True, 1), (False, 2)])
def test_what_may_have_arrived_is_asked_for_before_it_is_sent_again(tmp_path, unsure, copies):
    spool, client = Spool(tmp_path / "journal" / ("a" * 32)), Gullible()
    replay = Replay(SimpleNamespace(client=client, experiment_id="1", home=tmp_path, uri=""), spool)
    spool.identify("b" * 32)
    for first, last in ((1, 20), (20, 40)):
        for step in range(first, last):
            spool.append(("metrics", [["val/loss", float("nan"), step, step], ["val/auroc", 0.5, step, step]]))
        spool.mark_sent(0)  # killed before it could note what had arrived
        replay.send_unsent(unsure=unsure and first > 1)
    steps = [metric.step for metric in client.metrics if metric.key == "val/auroc"]
    assert sorted(steps) == sorted([*range(1, 40), *(range(1, 20) if copies == 2 else [])])


@pytest.fixture
def settings():
    return TrackingSettings(uri=None, experiment_name="x y", run_name=None, system_metrics=False, required=False)


@pytest.mark.parametrize("copied", [True, False], ids=["copied", "moved"])
def test_a_spool_that_was_moved_with_its_home_is_sent_to_the_database_that_lies_there(
    tmp_path, settings, monkeypatch, copied
):
    first, second = tmp_path / "first", tmp_path / "a second?#%"
    store = open_store(settings, home=first)
    with start_run(store, name="n", tags={}, system_metrics=False) as run:
        run.log_metrics({"val/auroc": 0.5}, step=1)
        run.sender.settle(20)
        monkeypatch.setattr(type(store.client), "log_batch", lambda *_, **__: (_ for _ in ()).throw(OSError("away")))
        run.log_metrics({"val/auroc": 0.6}, step=2)
    monkeypatch.undo()
    shutil.copytree(first, second)
    if not copied:
        mlflow_client.cache_clear()
        shutil.rmtree(first)
    [done] = sync.sync(store.uri, second)
    assert (done.run_id, done.status, done.problem) == (run.run_id, "FINISHED", "")
    assert not spools(second)
    client = mlflow_client(sqlite_uri(second / "mlflow.db"))
    assert [one.step for one in client.get_metric_history(run.run_id, "val/auroc")] == [1, 2]
    assert client.get_run(run.run_id).info.artifact_uri.startswith((second / "artifacts").as_uri())
    assert first.exists() is copied
    if copied:
        assert store.client.get_run(run.run_id).info.status == "RUNNING"
        assert [one.run_id for one in spools(first)] == [run.run_id]


@pytest.mark.parametrize(
    ("error", "others"),
    [(OSError("Connection refused"), "WAITS"), (OSError("Unable to locate credentials"), "FINISHED")],
)
def test_a_run_that_can_never_be_sent_keeps_no_other_run_waiting(tmp_path, settings, monkeypatch, error, others):
    store = open_store(settings, home=tmp_path)
    monkeypatch.setattr(type(store.client), "log_batch", lambda *_, **__: (_ for _ in ()).throw(OSError("away")))
    runs = []
    for name in ("first", "second"):
        with start_run(store, name=name, tags={}, system_metrics=False) as run:
            run.log_metrics({"val/auroc": 0.5}, step=1)
        runs.append(run.run_id)
    monkeypatch.undo()
    whole = Replay.send_unsent

    def send(self, *, unsure):
        if self._spool.run_id == runs[0]:
            raise error
        whole(self, unsure=unsure)

    monkeypatch.setattr(Replay, "send_unsent", send)
    done = {one.run_id: one for one in sync.sync(store.uri, tmp_path)}
    assert done[runs[0]].problem == str(error)
    assert done[runs[1]].status == others
