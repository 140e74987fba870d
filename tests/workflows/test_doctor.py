"""`xray doctor`: what it reports, what it sends and marks."""

import os

from xray_pneumonia.tracking.run import start_run
from xray_pneumonia.tracking.store import TrackingSettings, open_store

SETTINGS = TrackingSettings(uri=None, experiment_name="doctor", run_name=None, system_metrics=False, required=False)


def says(outcome, text):
    """Tell whether a report holds a text, wherever its table breaks lines."""
    return "".join(text.split()) in "".join(outcome.out.split())


def test_a_home_without_a_store_is_left_without_one(xray, tmp_path):
    outcome = xray("doctor", "home=nothing")
    assert outcome.code == 0, outcome.err
    assert says(outcome, "none yet; the first run makes it")
    assert outcome.out.splitlines()[-1] == "problems=0 unsent=0 stale=0"
    assert not (tmp_path / "nothing/mlflow.db").exists()


def test_a_run_that_the_store_did_not_take_is_reported_and_sent(xray, home, monkeypatch):
    store = open_store(SETTINGS, home=home)
    with start_run(store, name="n", tags={"verb": "train"}, system_metrics=False) as run:
        monkeypatch.setattr(type(store.client), "log_batch", lambda *_, **__: (_ for _ in ()).throw(OSError("away")))
        run.log_metrics({"val/auroc": 0.5}, step=1)
    reported = xray("doctor", f"home={home}")
    assert f"run {run.run_id}" in reported.out
    assert any(
        says(reported, f"unsynced, FINISHED: {count} entries") for count in (2, 3)
    )  # the first may be unsent too
    failed = xray("doctor", "sync", f"home={home}")
    assert failed.code == 1
    assert f"run {run.run_id}: away" in failed.err
    assert store.client.get_run(run.run_id).info.status == "RUNNING"
    monkeypatch.undo()
    sent = xray("doctor", "sync", f"home={home}")
    assert (sent.code, sent.out.splitlines()[-1]) == (0, "problems=0 unsent=0 stale=0"), sent.err
    assert store.client.get_run(run.run_id).info.status == "FINISHED"


def test_a_run_whose_process_is_gone_is_marked_killed(xray, home):
    store = open_store(SETTINGS, home=home)
    gone = {"host": os.uname().nodename, "pid": str(2**22 + 1), "born": "0"}
    run_id = store.client.create_run(store.experiment_id, tags=gone).info.run_id
    assert says(xray("doctor", f"home={home}", "mark=false"), f"pid {gone['pid']} on {gone['host']} is gone: mark=true")
    outcome = xray("doctor", f"home={home}")
    assert outcome.out.splitlines()[-1].endswith("stale=1")
    run = store.client.get_run(run_id)
    assert (run.info.status, "its process is gone" in run.data.tags["reason"]) == ("KILLED", True)
