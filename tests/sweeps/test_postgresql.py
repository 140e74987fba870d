"""Several processes, one study, on PostgreSQL; the server is restarted in the middle."""

import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import optuna
import pytest
import sqlalchemy as sa

from xray_pneumonia.sweeps.storage import locked, open_storage
from xray_pneumonia.tracking import database


def wait_for_complete(url, process, *, count):
    """Wait for the first completed trials."""
    storage = None
    end = time.monotonic() + 600
    while time.monotonic() < end and process.poll() is None:
        time.sleep(2)
        try:
            storage = storage or open_storage.__wrapped__(url)
            trials = optuna.load_study(study_name="pg", storage=storage).trials
        except (KeyError, optuna.exceptions.StorageInternalError):
            continue
        if sum(trial.state.name == "COMPLETE" for trial in trials) >= count:
            storage.engine.dispose()
            return
    raise AssertionError("no trial was completed")


@pytest.mark.long
def test_commands_that_begin_at_once_make_the_tables_once(postgresql):
    """As the tasks of a job array do on a new database."""
    together = Barrier(8)

    def first(number):
        together.wait()
        return open_storage.__wrapped__(postgresql.url("sweeps"))

    with ThreadPoolExecutor(8) as threads:
        storages_of_all = list(threads.map(first, range(8)))
    assert {storage.engine.name for storage in storages_of_all} == {"postgresql"}
    for storage in storages_of_all:
        storage.engine.dispose()


@pytest.mark.long
def test_eight_workers_survive_a_restart_of_the_server(command, postgresql, records, tmp_path):
    records = replace(records, sweeps=postgresql.url("sweeps"), mlflow=postgresql.url("mlflow"))
    command += ("optimizer.lr=tag(log,interval(1e-4,1e-2))", "sweep.n_trials=16", "sweep.name=pg", "workers=8")
    command += (f"sweep.storage={records.sweeps}", f"tracking.uri={records.mlflow}", "sweep.max_failures=null")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    try:
        wait_for_complete(records.sweeps, process, count=2)
        postgresql.control("-m", "immediate", "restart")
        code = process.wait(timeout=1500)
    finally:
        process.kill()
        process.wait()
    assert code == 0, (tmp_path / "log").read_text()

    trials = records.trials("pg")
    states = Counter(trial.state.name for trial in trials)
    assert states["COMPLETE"] == 16, states
    assert states["RUNNING"] == 0
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert len({trial.user_attrs["worker"]["pid"] for trial in trials if trial.state.name == "COMPLETE"}) > 1
    done = {str(trial.number) for trial in trials if trial.state.name == "COMPLETE"}
    finished = {run.data.tags["sweep.trial"] for run in records.runs("train") if run.info.status == "FINISHED"}
    assert finished >= done
    assert not [run for run in records.runs() if run.info.status == "RUNNING"]


@pytest.mark.long
def test_a_paused_holder_of_the_lock_stops_nobody_and_heartbeats_are_in_utc(postgresql, monkeypatch, caplog):
    monkeypatch.setattr(database, "LONGEST_LOCK", "1s")
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")  # of this client; another one may have another
    storage = open_storage(postgresql.url("sweeps"))
    with storage.engine.connect() as connection:
        assert connection.execute(sa.text("show time zone")).scalar() == "UTC"
    with locked(storage), locked(storage):  # the second one waits until the first one's session is ended
        assert "lost" not in caplog.text
    assert "the lock of the sweep's database was lost meanwhile" in caplog.text
    postgresql.control("-m", "immediate", "restart")
    caplog.clear()
    with locked(storage):  # connects again
        pass
    assert "lost" not in caplog.text
    storage.engine.dispose()
    open_storage.cache_clear()
