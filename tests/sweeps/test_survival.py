"""A sweep that is killed goes on: nothing lost, nothing doubled, every status true."""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress

import optuna
import psutil
import pytest
from mlflow import MlflowClient


def start(command):
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def kill_after(process, seconds):
    """Kill it after so many seconds of its own computing: a busy machine would kill nothing but imports."""
    seen = psutil.Process(process.pid)
    end = time.monotonic() + 30 * seconds
    while time.monotonic() < end and process.poll() is None and sum(seen.cpu_times()[:2]) < seconds:
        time.sleep(0.05)
    with suppress(ProcessLookupError):  # it was done
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finish(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def load(home, name):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{home}/sweeps.db")


def children(home):
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name == "xray"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = [run for run in runs if run.data.tags["verb"] == "sweep"]
    return parents, [run for run in runs if run.data.tags["verb"] != "sweep"]


def require_accounted(home, name, n_trials):
    trials = load(home, name).trials
    states = Counter(trial.state.name for trial in trials)
    assert states["COMPLETE"] + states["PRUNED"] == n_trials, states
    assert states["RUNNING"] == 0, states
    assert [trial.number for trial in trials] == list(range(len(trials)))
    parents, runs = children(home)
    assert [run.info.status for run in parents] == ["FINISHED"]
    finished = Counter(run.data.tags["sweep.trial"] for run in runs if run.info.status == "FINISHED")
    done = {str(trial.number) for trial in trials if trial.state.name in {"COMPLETE", "PRUNED"}}
    assert set(finished) == done
    assert set(finished.values()) == {1}
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
    assert all(run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id for run in runs)
    failed = {str(trial.number) for trial in trials if trial.state.name == "FAIL"}
    assert {run.data.tags["sweep.trial"] for run in runs if run.info.status == "KILLED"} <= failed
    return states


@pytest.mark.long
def test_twenty_kills_of_twenty_trials(command, tmp_path):
    command += (f"home={tmp_path}", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "sweep.n_trials=20", "sweep.name=kill")
    dice = random.Random(0)
    for _ in range(20):
        kill_after(start(command), dice.uniform(3, 14))
    finish(command)
    require_accounted(tmp_path, "kill", 20)


@pytest.mark.long
def test_a_killed_grid_is_completed_without_a_point_twice(command, tmp_path):
    command += (f"home={tmp_path}", "optimizer.lr=1e-4,3e-4,1e-3,3e-3", "sweep.name=grid")
    for seconds in (9, 8):
        kill_after(start(command), seconds)
    finish(command)
    require_accounted(tmp_path, "grid", 4)
    complete = [trial for trial in load(tmp_path, "grid").trials if trial.state.name == "COMPLETE"]
    assert sorted(trial.params["optimizer.lr"] for trial in complete) == ["0.0001", "0.0003", "0.001", "0.003"]
