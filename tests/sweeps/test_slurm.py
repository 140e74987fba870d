"""A sweep on a real Slurm of one node: one trial is cancelled in the middle, another one requeued."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm_one_node.sh"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Start a Slurm, and stop it."""
    if os.geteuid() != 0 or not shutil.which("slurmctld") or not shutil.which("munged"):
        pytest.skip("needs root and Slurm: apt-get install slurm-wlm munge")
    pytest.importorskip("submitit")
    if subprocess.run(["pgrep", "-x", "slurmctld"], capture_output=True, check=False).returncode == 0:
        pytest.skip("a Slurm runs here already")
    folder = tmp_path / "slurm"
    subprocess.run([SCRIPT, "start", folder], check=True, capture_output=True)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    yield folder
    subprocess.run(["scancel", "--me"], check=False, capture_output=True)
    subprocess.run([SCRIPT, "stop", folder], check=True)


def wait_for(condition, *, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(1)
    raise AssertionError(f"waited {seconds} s in vain")


def job_of(pid):
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    environment = dict(entry.split("=", 1) for entry in entries if "=" in entry)
    return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"


@pytest.mark.long
def test_a_cancelled_trial_is_replaced_and_a_requeued_one_goes_on(command, slurm, records, tmp_path):
    """Without accounting, submitit waits for a cancelled job for ever: the command is killed and given again."""
    command += ("trainer.max_epochs=40", "trainer.patience=null", "optimizer.lr=1e-4,3e-4,1e-3", "sweep.name=slurm")
    command += ("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=20", "hydra.launcher.mem_gb=1")
    command += ("sweep.parallel=3",)

    def trials():
        ready = "trials to go" in (tmp_path / "log").read_text()  # before, a second process would make the tables too
        return records.trials("slurm") if ready else []

    def underway(number):
        begun = [t for t in trials() if t.number == number and len(t.intermediate_values) >= 2]
        return next((job_of(t.user_attrs["worker"]["pid"]) for t in begun if "worker" in t.user_attrs), None)

    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    subprocess.run(["scancel", wait_for(lambda: underway(0), seconds=180)], check=True)
    job = wait_for(lambda: underway(1), seconds=180)
    subprocess.run(["scontrol", "requeue", job], check=True)
    queue = ["squeue", "-h", "-o", "%T", "-j", job]
    wait_for(lambda: b"PENDING" in subprocess.run(queue, capture_output=True, check=False).stdout, seconds=60)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
    wait_for(lambda: [t.state.name for t in trials()[1:3]] == ["COMPLETE"] * 2, seconds=600)
    process.kill()
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr

    states = [(trial.number, trial.state.name) for trial in trials()]
    assert states == [(0, "FAIL"), (1, "COMPLETE"), (2, "COMPLETE"), (3, "COMPLETE")]
    assert trials()[3].user_attrs["replaces"] == 0
    runs = records.runs("train")
    assert len(runs) == 4  # the requeued trial kept its run
    children = {int(run.data.tags["sweep.trial"]): run.info for run in runs}
    assert [children[number].status for number in range(4)] == ["KILLED", "FINISHED", "FINISHED", "FINISHED"]
    history = MlflowClient(records.mlflow).get_metric_history(children[1].run_id, "val/auroc")
    steps = [metric.step for metric in history]
    assert sorted(set(steps)) == list(range(1, 41))
    assert len(steps) < 45  # it went on from its checkpoint instead of starting again


@pytest.mark.long
def test_the_tasks_of_an_array_are_one_sweep_and_one_whose_time_ends_goes_on(
    small, slurm, records, tmp_path, monkeypatch
):
    """Their homes are not shared; TERM is what Slurm sends two minutes before the end."""
    (tmp_path / "xray").write_text(f'#!/bin/sh\nexec {sys.executable} -m xray_pneumonia.cli "$@"\n')
    (tmp_path / "xray").chmod(0o755)
    (tmp_path / "mlruns").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, value in {"XRAY_SWEEP_STORAGE": records.sweeps, "MLFLOW_TRACKING_URI": records.mlflow}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    options = ["--array=0-1", "--cpus-per-task=1", "--mem=1G", "--time=30"]
    sweep = [
        *small,
        "trainer.max_epochs=20",
        "trainer.patience=null",
        "optimizer.lr=1e-4,3e-4,1e-3",
        "sweep.name=array",
    ]
    array = [*options, SCRIPT.parent / "cluster" / "sweep.sbatch", *sweep]
    subprocess.run(["sbatch", "--test-only", *array], check=True, capture_output=True)
    job = subprocess.run(["sbatch", "--parsable", *array], check=True, capture_output=True, text=True).stdout.strip()

    def logs():
        return "".join(path.read_text() for path in tmp_path.glob("xray-sweep-*.log"))

    def states():
        ready = "trials to go" in logs()  # before, this process would make the tables too
        return [trial.state.name for trial in records.trials("array")] if ready else []

    def queued(task):
        return subprocess.run(
            ["squeue", "-h", "-o", "%T", "-j", task], capture_output=True, text=True, check=False
        ).stdout

    def underway():
        running = [trial for trial in records.trials("array") if trial.state.name == "RUNNING"] if states() else []
        return next((job_of(t.user_attrs["worker"]["pid"]) for t in running if t.intermediate_values), None)

    task = wait_for(underway, seconds=240)
    subprocess.run(["scancel", "--batch", "--signal=TERM", task], check=True)
    wait_for(lambda: "PENDING" in queued(task), seconds=120)
    subprocess.run(["scontrol", "update", f"JobId={task}", "StartTime=now"], check=True)
    wait_for(lambda: states().count("COMPLETE") == 3 and not queued(job).strip(), seconds=400)
    assert sorted(states()) == ["COMPLETE"] * 3 + ["FAIL"], logs()
    [parent] = records.runs("sweep")  # and not one for each home
    assert parent.info.status == "FINISHED"
    assert "RUNNING" not in {run.info.status for run in records.runs()}
    assert len({trial.user_attrs["worker"]["pid"] for trial in records.trials("array")}) > 1
