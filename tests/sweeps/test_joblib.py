"""`hydra/launcher=joblib`: several processes of one machine, one study, one parent run."""

import os
import signal
import subprocess
import time
from collections import Counter

import pytest

from xray_pneumonia.sweeps import workers

pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
JOBS = 2


@pytest.fixture
def sweep(command, tmp_path):
    """Start a sweep whose trials joblib runs; nothing in its environment says how many threads."""

    def started(*arguments):
        keys = ("trainer.threads=null", *arguments, "hydra/launcher=joblib")
        with (tmp_path / "log").open("w") as log:
            return subprocess.Popen(
                [*command, *keys, f"hydra.launcher.n_jobs={JOBS}", "sweep.name=jobs"],
                env={key: value for key, value in os.environ.items() if key not in workers.THREADS},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    return started


@pytest.mark.long
def test_trials_run_side_by_side_below_one_parent_each_with_its_share_of_the_threads(sweep, records, tmp_path):
    process = sweep("optimizer.lr=1e-4,1e-3,1e-2,3e-3")
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    trials = records.trials("jobs")
    assert [(trial.number, trial.state.name) for trial in trials] == [(number, "COMPLETE") for number in range(4)]
    processes = Counter(trial.user_attrs["worker"]["pid"] for trial in trials)
    assert len(processes) == JOBS
    assert process.pid not in processes
    [parent] = records.runs("sweep")
    assert parent.info.status == "FINISHED"
    assert out.splitlines()[-1].startswith(f"sweep_id={parent.info.run_id} trials=4 ")
    children = records.runs("train")
    assert sorted(run.data.tags["sweep.trial"] for run in children) == ["0", "1", "2", "3"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in children} == {"FINISHED"}
    share = workers.share(0, JOBS, gpus=0)["OMP_NUM_THREADS"]
    assert {run.data.tags["machine.threads"] for run in children} == {share}


@pytest.mark.long
def test_a_killed_job_is_a_failed_trial_and_the_rest_goes_on(sweep, records, tmp_path):
    process = sweep("trainer.max_epochs=30", "trainer.patience=null", "optimizer.lr=1e-4,1e-3,3e-3")
    reporting = []
    while not reporting and process.poll() is None:
        time.sleep(0.5)
        if "trials to go" in (tmp_path / "log").read_text():  # before, a second process would make the tables too
            reporting = [trial for trial in records.trials("jobs") if trial.intermediate_values]
    os.kill(reporting[0].user_attrs["worker"]["pid"], signal.SIGKILL)
    process.communicate(timeout=600)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    states = [trial.state.name for trial in records.trials("jobs")]
    assert states[0] == "FAIL"
    assert states[2] == "COMPLETE"
    assert "RUNNING" not in states
    assert [run for run in records.runs("train") if run.info.status == "RUNNING"] == []
    assert [run.info.status for run in records.runs("sweep")] == ["FINISHED"]
