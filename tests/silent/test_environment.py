"""The environment speaks for the user: signals, closed streams, folders that vanish, permissions (kind F)."""

import os
import signal
import stat
import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient

SMALL = ["data=synthetic", "data.synthetic_patients=20", "data.image_size=32", "trainer=cpu", "evaluation=quick"]
LONG = ["trainer.max_epochs=100000", "trainer.patience=null", "tracking.system_metrics=false"]


@pytest.fixture
def started(tmp_path):
    """Start a training in a process of its own; gives it after its first epoch, and kills it after the test."""
    command = [sys.executable, "-m", "xray_pneumonia.cli", "train", *SMALL, *LONG]
    running = []

    def start(**options):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)
        running.append(process)
        assert any(b"epoch 1/" in line for line in process.stderr)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def status(tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    [run] = client.search_runs([client.get_experiment_by_name("xray").experiment_id])
    return run.info.status


def test_a_closed_terminal_ends_the_run_as_killed(started, tmp_path):
    process = started()
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=180)
    assert process.returncode == 128 + signal.SIGHUP
    assert status(tmp_path) == "KILLED"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_an_ignored_signal_stays_ignored(started, number):
    process = started(preexec_fn=lambda: signal.signal(number, signal.SIG_IGN))
    process.send_signal(number)
    time.sleep(2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=180)
    assert process.returncode == 128 + signal.SIGTERM


def test_a_closed_standard_error_loses_nothing(tmp_path):
    command = f"{sys.executable} -m xray_pneumonia.cli train {' '.join(SMALL)} trainer=smoke 2>&-"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("run_id=")


def test_a_working_folder_that_is_gone_is_named(tmp_path):
    command = (
        f"mkdir gone && cd gone && rmdir ../gone && {sys.executable} -m xray_pneumonia.cli train {' '.join(SMALL)}"
    )
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "working folder" in done.stderr


def test_files_that_name_patients_are_the_users_alone(xray, xrays, tmp_path):
    outcome = xray("predict", f"input={xrays}/test", "output=out", "workers=1")
    assert outcome.code == 0, outcome.err
    for file in (tmp_path / "out").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file
    assert os.stat(tmp_path / "out").st_mode & 0o007 == 0
