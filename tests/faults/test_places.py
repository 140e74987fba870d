"""Where a command runs: another folder, a moved project, no HOME, no network, another number of threads."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from xray_pneumonia.workflows.training_record import compare_histories, read_history

TINY = ["trainer.max_epochs=2", "augmentation=light", "model.dropout=0.3"]


def test_a_project_that_was_moved_is_reproduced_from_another_folder(xray, tiny, xrays, tmp_path, monkeypatch):
    """F32."""
    small = [one for one in tiny if not one.startswith(("data.root", "home="))]
    shutil.copytree(xrays, tmp_path / "first/data")
    trained = xray("train", *small, f"data.root={tmp_path}/first/data", f"home={tmp_path}/first/mlruns")
    assert trained.code == 0, trained.err
    shutil.move(tmp_path / "first", tmp_path / "second")
    monkeypatch.chdir("/")
    where = [f"home={tmp_path}/second/mlruns", f"run_id={trained.run_id}"]
    missing = xray_at_root(xray, monkeypatch, "reproduce", *where)
    assert missing.code == 2
    assert f"data.root={tmp_path}/first/data: no such folder" in missing.err
    found = xray_at_root(xray, monkeypatch, "reproduce", *where, f"data.root={tmp_path}/second/data")
    assert found.code == 0, found.err
    assert "verdict=bit-identical" in found.out
    assert not (tmp_path / "first").exists()


def xray_at_root(xray, monkeypatch, *arguments):
    monkeypatch.chdir("/")
    return xray(*arguments)


@pytest.fixture
def bare():
    """Run the command with an empty environment, no network, from a folder that nobody can write to."""
    cut_off = ["unshare", "-n"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*cut_off, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("cutting a process off the network needs unshare and the right to use it")

    def run(*arguments):
        command = ["env", "-i", "OMP_NUM_THREADS=1", *cut_off, sys.executable, "-m", "xray_pneumonia.cli", *arguments]
        return subprocess.run(command, cwd="/proc", capture_output=True, text=True, timeout=300, check=False)

    return run


@pytest.mark.slow
def test_no_home_no_network_and_a_read_only_folder(bare, tiny):
    """F33: a training and its reproduction need nothing of these."""
    trained = bare("train", *tiny, *TINY)
    assert trained.returncode == 0, trained.stderr
    run_id = trained.stdout.splitlines()[-1].split()[0].removeprefix("run_id=")
    home = next(one for one in tiny if one.startswith("home="))
    again = bare("reproduce", home, f"run_id={run_id}")
    assert again.returncode == 0, again.stderr
    assert "verdict=bit-identical" in again.stdout


@pytest.mark.slow
def test_a_read_only_folder_is_named_where_the_store_would_be_made(bare, xrays):
    """F33."""
    outcome = bare("train", f"data.root={xrays}", "trainer=smoke", "data.image_size=32")
    assert outcome.returncode == 2
    assert "home=/proc/mlruns: cannot be used" in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.slow
def test_pretrained_weights_that_cannot_be_fetched_are_named(bare, tiny):
    """F33."""
    plain = [one for one in tiny if not one.startswith("model")]
    outcome = bare("train", *plain, "model=torchvision", "model.pretrained=true")
    assert outcome.returncode != 0
    assert ".pth" in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processors")
def test_another_number_of_threads_agrees_within_rounding(xray, tiny, home):
    """F34: close, and never promised to be equal."""
    small = [one for one in tiny if not one.startswith("model")]
    net = ["model=resnet", "model.width=16", "model.depth=1", "model.stages=3", "data.image_size=64"]
    histories, before = [], torch.get_num_threads()
    for threads in (1, 2):
        outcome = xray("train", *small, *net, f"trainer.threads={threads}", "optimizer=sgd", "optimizer.lr=1e-3")
        assert outcome.code == 0, outcome.err
        files = sorted((home / "artifacts").rglob("history.csv"), key=lambda path: path.stat().st_mtime)
        histories.append(read_history(files[-1]))
    torch.set_num_threads(before)
    losses = [one for one in compare_histories(*histories) if one.metric.endswith("/loss")]
    assert all(abs((each.stored or 0) - (each.found or 0)) < 1e-3 for each in losses)
