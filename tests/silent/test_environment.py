"""The environment speaks for the user: signals, closed streams, folders that vanish, permissions (kind F)."""

import os
import signal
import stat
import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient

from xray_pneumonia.whole_files import private

SMALL = ["data=synthetic", "data.synthetic_patients=20", "data.image_size=32", "trainer=cpu", "evaluation=quick"]
LONG = ["trainer.max_epochs=100000", "trainer.patience=null", "tracking.system_metrics=false"]


@pytest.fixture
def started(tmp_path):
    """A training after its first epoch, whose parent ignores SIGHUP and SIGINT."""

    def ignore():
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    command = [sys.executable, "-m", "xray_pneumonia.cli", "train", *SMALL, *LONG]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, **pipes, preexec_fn=ignore) as process:
        assert any("epoch 1/" in line for line in process.stderr)
        yield process
        process.kill()


def test_ignored_signals_stay_ignored_and_another_ends_the_run_once(started, tmp_path):
    for number in (signal.SIGHUP, signal.SIGINT):
        started.send_signal(number)
    time.sleep(1)
    assert started.poll() is None
    started.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    started.send_signal(signal.SIGTERM)
    _, err = started.communicate(timeout=180)
    assert started.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in err
    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    [run] = client.search_runs([client.get_experiment_by_name("xray").experiment_id])
    assert run.info.status == "KILLED"


def test_a_closed_standard_error_loses_nothing(tmp_path):
    command = f"{sys.executable} -m xray_pneumonia.cli train {' '.join(SMALL)} trainer=smoke 2>&-"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("run_id=")


@pytest.mark.parametrize(("team", "umask", "mode"), [(False, 0o002, 0o600), (True, 0o022, 0o600), (True, 0o002, 0o660)])
def test_what_names_patients_is_the_users_alone_or_the_groups_that_shares_a_store(tmp_path, team, umask, mode):
    before = os.umask(umask)
    with private(team=team):
        (tmp_path / "page.html").touch()
    assert os.umask(before) == umask
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == mode


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
