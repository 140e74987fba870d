"""Several processes, one study, on PostgreSQL; the server is restarted in the middle."""

import subprocess
import time
from collections import Counter

import optuna
import pytest
from mlflow import MlflowClient


def watch_until(url, process, *, complete):
    """Wait for the first completed trials; returns the storage."""
    storage = None
    end = time.monotonic() + 600
    while time.monotonic() < end and process.poll() is None:
        time.sleep(2)
        try:
            storage = storage or optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
            trials = optuna.load_study(study_name="pg", storage=storage).trials
        except (KeyError, optuna.exceptions.StorageInternalError):
            continue
        if sum(trial.state.name == "COMPLETE" for trial in trials) >= complete:
            return storage
    raise AssertionError("no trial was completed")


@pytest.mark.long
def test_eight_workers_survive_a_restart_of_the_server(command, postgresql, tmp_path):
    sweep = [
        *(*command, f"home={tmp_path}"),
        *("optimizer.lr=tag(log,interval(1e-4,1e-2))", "sweep.n_trials=16", "sweep.name=pg", "workers=8"),
        *(
            f"sweep.storage={postgresql.url('sweeps')}",
            f"tracking.uri={postgresql.url('mlflow')}",
            "sweep.max_failures=null",
        ),
    ]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(sweep, stdout=subprocess.DEVNULL, stderr=log)
    try:
        storage = watch_until(postgresql.url("sweeps"), process, complete=2)
        postgresql.control("-m", "immediate", "restart")
        code = process.wait(timeout=1500)
    finally:
        process.kill()
        process.wait()
    assert code == 0, (tmp_path / "log").read_text()

    trials = optuna.load_study(study_name="pg", storage=storage).trials
    states = Counter(trial.state.name for trial in trials)
    assert states["COMPLETE"] == 16, states
    assert states["RUNNING"] == 0
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert len({trial.user_attrs["worker"]["pid"] for trial in trials if trial.state.name == "COMPLETE"}) > 1
    client = MlflowClient(postgresql.url("mlflow"))
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(ids, max_results=1000)
    done = {str(trial.number) for trial in trials if trial.state.name == "COMPLETE"}
    trained = [run for run in runs if run.data.tags["verb"] == "train"]
    finished = [run.data.tags["sweep.trial"] for run in trained if run.info.status == "FINISHED"]
    assert set(finished) >= done
    assert not [run for run in runs if run.info.status == "RUNNING"]
    storage.engine.dispose()
