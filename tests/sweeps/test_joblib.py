"""`hydra/launcher=joblib`: several processes of one machine, one study, one parent run."""

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter

import optuna
import pytest
from mlflow import MlflowClient
from sqlalchemy.exc import OperationalError

from xray_pneumonia.sweeps import workers

pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
JOBS = 2


@pytest.fixture
def sweep(command, tmp_path):
    """Start a sweep whose trials joblib runs; nothing in its environment says how many threads."""

    def started(*arguments):
        names = {"MLFLOW_TRACKING_URI", *workers.THREADS}
        keys = ("trainer.threads=null", "evaluation=quick", *arguments, "hydra/launcher=joblib")
        with (tmp_path / "log").open("w") as log:
            return subprocess.Popen(
                [*command, *keys, f"hydra.launcher.n_jobs={JOBS}", "sweep.name=jobs"],
                cwd=tmp_path,
                env={key: value for key, value in os.environ.items() if key not in names},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    return started


def trials(home):
    return optuna.load_study(study_name="jobs", storage=f"sqlite:///{home}/mlruns/sweeps.db").trials


def reporting(home):
    """The trials that have reported an epoch; none while the study is being made."""
    with contextlib.suppress(KeyError, OperationalError):
        if (home / "mlruns" / "sweeps.db").exists():
            return [trial for trial in trials(home) if trial.intermediate_values]
    return []


def runs(home, verb):
    client = MlflowClient(f"sqlite:///{home}/mlruns/mlflow.db")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return [run for run in client.search_runs(ids) if run.data.tags["verb"] == verb]


@pytest.mark.slow
def test_trials_run_side_by_side_below_one_parent_each_with_its_share_of_the_threads(sweep, tmp_path):
    process = sweep("optimizer.lr=1e-4,1e-3,1e-2,3e-3")
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    told = trials(tmp_path)
    assert [(trial.number, trial.state.name) for trial in told] == [(number, "COMPLETE") for number in range(4)]
    processes = Counter(trial.user_attrs["worker"]["pid"] for trial in told)
    assert len(processes) == JOBS
    assert process.pid not in processes
    [parent] = runs(tmp_path, "sweep")
    assert parent.info.status == "FINISHED"
    assert said.splitlines()[-1].startswith(f"sweep_id={parent.info.run_id} trials=4 ")
    children = runs(tmp_path, "train")
    assert sorted(run.data.tags["sweep.trial"] for run in children) == ["0", "1", "2", "3"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in children} == {"FINISHED"}
    share = workers.share(0, JOBS, gpus=0)["OMP_NUM_THREADS"]
    assert {run.data.tags["machine.threads"] for run in children} == {share}


@pytest.mark.long
def test_a_killed_job_is_a_failed_trial_and_the_rest_goes_on(sweep, tmp_path):
    process = sweep("trainer.max_epochs=30", "trainer.patience=null", "optimizer.lr=1e-4,1e-3,3e-3")
    while not (begun := reporting(tmp_path)) and process.poll() is None:
        time.sleep(0.5)
    os.kill(begun[0].user_attrs["worker"]["pid"], signal.SIGKILL)
    process.communicate(timeout=600)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    states = [trial.state.name for trial in trials(tmp_path)]
    assert states[0] == "FAIL"
    assert states[2] == "COMPLETE"
    assert "RUNNING" not in states
    assert [run for run in runs(tmp_path, "train") if run.info.status == "RUNNING"] == []
    assert [run.info.status for run in runs(tmp_path, "sweep")] == ["FINISHED"]
