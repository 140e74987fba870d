"""A sweep on a real Slurm of one node: one trial is cancelled in the middle, another one requeued."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import optuna
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
        if (found := condition()) is not None:
            return found
        time.sleep(1)
    raise AssertionError(f"waited {seconds} s in vain")


@pytest.mark.long
def test_a_cancelled_trial_is_replaced_and_a_requeued_one_goes_on(command, slurm, tmp_path):
    home = tmp_path / "mlruns"
    sweep = [
        *(*command, f"home={home}", "trainer.max_epochs=40", "trainer.patience=null"),
        *("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=20", "hydra.launcher.mem_gb=1"),
        *("optimizer.lr=1e-4,3e-4,1e-3", "sweep.parallel=3", "sweep.name=slurm"),
    ]
    storage = f"sqlite:///{home}/sweeps.db"

    def trials():
        try:
            return optuna.load_study(study_name="slurm", storage=storage).trials
        except Exception:
            return []

    def underway(number):
        begun = [t for t in trials() if t.number == number and len(t.intermediate_values) >= 2]
        return next((t for t in begun if "worker" in t.user_attrs), None)

    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(sweep, stdout=subprocess.DEVNULL, stderr=log, cwd=tmp_path)
    cancelled = wait_for(lambda: underway(0), seconds=180)
    subprocess.run(["scancel", cancelled.user_attrs["worker"]["slurm"]], check=True)
    requeued = wait_for(lambda: underway(1), seconds=180)
    job = requeued.user_attrs["worker"]["slurm"]
    subprocess.run(["scontrol", "requeue", job], check=True)

    def pending():
        shown = subprocess.run(["squeue", "-h", "-o", "%T", "-j", job], capture_output=True, text=True, check=False)
        return True if "PENDING" in shown.stdout else None

    wait_for(pending, seconds=60)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
    assert process.wait(timeout=600) == 0, (tmp_path / "log").read_text()

    states = [(trial.number, trial.state.name) for trial in trials()]
    assert states == [(0, "FAIL"), (1, "COMPLETE"), (2, "COMPLETE"), (3, "COMPLETE")]
    assert trials()[3].user_attrs["replaces"] == 0
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("xray").experiment_id], order_by=["start_time ASC"])
    children = {int(run.data.tags["sweep.trial"]): run for run in runs if run.data.tags["verb"] == "train"}
    assert len([run for run in runs if run.data.tags["verb"] == "train"]) == 4  # the requeued trial kept its run
    assert {number: run.info.status for number, run in children.items()} == {
        0: "KILLED",
        1: "FINISHED",
        2: "FINISHED",
        3: "FINISHED",
    }
    steps = [metric.step for metric in client.get_metric_history(children[1].info.run_id, "val/auroc")]
    assert sorted(set(steps)) == list(range(1, 41))
    assert len(steps) < 45  # it went on from its checkpoint instead of starting again
