"""F13 to F17, F29: faults of numbers, workers, memory and files end a training with one line that names them."""

import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from mlflow import MlflowClient

from xray_pneumonia.data.files import changed
from xray_pneumonia.data.loaders import BatchLoader
from xray_pneumonia.errors import LoaderFailed
from xray_pneumonia.training.checkpoints import newest_valid
from xray_pneumonia.training.classifier import PneumoniaClassifier

ENDLESS = ["trainer.max_epochs=10000", "trainer.patience=null"]


def last_run(home, experiment):
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id]) if found else []
    return runs[0] if runs else None


def checkpoint(run, name):
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    return torch.load(folder / "checkpoints" / name, weights_only=True)


@pytest.mark.parametrize("where", ["loss", "weights"])
def test_f13_what_is_no_number_ends_the_run_and_is_never_best(xray, tiny, home, monkeypatch, where):
    step = PneumoniaClassifier.training_step

    def poisoned(self, batch, number):
        late = self.current_epoch >= 2
        if late and where == "weights":
            with torch.no_grad():
                next(self.parameters()).fill_(math.inf)
        return step(self, batch, number) * (math.nan if late and where == "loss" else 1)

    monkeypatch.setattr(PneumoniaClassifier, "training_step", poisoned)
    name = f"f13 {where}"
    outcome = xray("train", *tiny, "trainer.max_epochs=6", "trainer.patience=null", f"tracking.experiment_name={name}")
    assert outcome.code == 1
    assert "TrainingDiverged" in outcome.err
    assert "epoch 3" in outcome.err
    run = last_run(home, name)
    assert run.info.status == "FAILED"
    best = checkpoint(run, "best.ckpt")
    assert best["epoch"] < 2
    assert all(torch.isfinite(value).all() for value in best["state_dict"].values())
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    for metric in run.data.metrics:
        assert all(math.isfinite(one.value) for one in client.get_metric_history(run.info.run_id, metric)), metric


def test_a_validation_of_one_class_names_the_keys_and_the_cure(xray, tiny):
    few = ["trainer.limit_val_batches=1", "data.batch_size=2"]
    outcome = xray("train", *tiny, *few)
    assert (outcome.code, outcome.err.count("\n  ")) == (2, 0)
    said = outcome.err.splitlines()[-1]
    assert "trainer.limit_val_batches=1: the 2 images" in said
    assert "monitor=val/auroc" in said
    assert xray("train", *tiny, *few, "trainer.max_epochs=1", "monitor=val/loss").code == 0


def test_a_smoke_test_validates_on_both_classes_though_records_come_class_by_class(xray, tiny):
    outcome = xray("train", *tiny, "trainer=smoke", "trainer.max_epochs=1", "data.batch_size=2")
    assert outcome.code == 0, outcome.err
    assert "val/auroc=" in outcome.out


def workers_of(process):
    """The processes that prepare its batches."""
    with_spawn = psutil.Process(process.pid).children()
    return [one for one in with_spawn if one.status() != psutil.STATUS_ZOMBIE]


def wait_for(question, seconds=180):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := question():
            return answer
        time.sleep(0.3)
    raise AssertionError("it did not happen in time")


@pytest.fixture
def begun(tiny, home, tmp_path):
    """Start an endless training and wait for its first validation; returns its process and its run."""
    processes = []

    def run(name, *overrides, command=("-m", "xray_pneumonia.cli")):
        arguments = ["train", *tiny, *ENDLESS, *overrides, f"tracking.experiment_name={name}"]
        process = subprocess.Popen(
            [sys.executable, *command, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process, wait_for(lambda: (run := last_run(home, name)) and "val/auroc" in run.data.metrics and run)

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def require_failed(process, home, name):
    """Wait for the end; returns what was said."""
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert last_run(home, name).info.status == "FAILED"
    return err


@pytest.mark.long
def test_f14_a_killed_worker_is_named_and_the_checkpoint_is_whole(begun, home, within):
    process, run = begun("f14", "data.num_workers=2")
    folder = Path(run.info.artifact_uri.removeprefix("file://")) / "checkpoints"
    wait_for((folder / "last.ckpt").exists)  # written after the metrics
    victim = workers_of(process)[0]
    victim.send_signal(signal.SIGKILL)
    with within(60):
        err = require_failed(process, home, "f14")
    assert f"pid(s) {victim.pid}" in err or f"pid {victim.pid}" in err  # torch reports it wherever the training is
    assert newest_valid(folder).epoch >= 1  # torch raises wherever the training is, also while it writes the next one


HANGING = """
import sys
from xray_pneumonia import cli
from xray_pneumonia.data import loaders
loaders.TIMEOUT = 5.0
sys.argv = ["xray", *sys.argv[1:]]
sys.exit(cli.main())
"""


@pytest.mark.long
def test_f15_a_worker_that_hangs_is_not_waited_for(begun, home, within):
    process, _ = begun("f15", "data.num_workers=2", command=("-c", HANGING))
    victim = workers_of(process)[0]
    victim.send_signal(signal.SIGSTOP)
    with within(60):
        err = require_failed(process, home, "f15")
    assert "one of them hangs" in err
    assert str(victim.pid) in err
    assert not psutil.pid_exists(victim.pid)


@pytest.mark.long
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare for a small /dev/shm"
)
def test_f16_a_tiny_shared_memory_is_said_with_its_cure(tiny, tmp_path):
    command = [sys.executable, "-m", "xray_pneumonia.cli", "train", *tiny, "data.num_workers=2", "data.image_size=128"]
    small = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", small, "sh", *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "/dev/shm" in done.stderr
    assert "data.num_workers=0" in done.stderr


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("prlimit"), reason="needs prlimit")
def test_f17_without_memory_the_run_fails_and_leaves_no_process(begun, home):
    process, _ = begun("f17")
    used = psutil.Process(process.pid).memory_info().vms
    subprocess.run(["prlimit", f"--as={used}", "--pid", str(process.pid)], check=True)
    assert "memory" in require_failed(process, home, "f17").lower()
    assert not [one for one in psutil.process_iter(["ppid"]) if one.info["ppid"] == process.pid]


@pytest.mark.parametrize("fault", ["removed", "replaced", "truncated"])
def test_f29_a_file_that_changes_mid_run_stops_it(xray, tiny, xrays, home, tmp_path, monkeypatch, fault):
    root = shutil.copytree(xrays, tmp_path / "xrays")
    victim = sorted((root / "train" / "NORMAL").iterdir())[0]
    other = sorted((root / "train" / "PNEUMONIA").iterdir())[0]
    end = PneumoniaClassifier.on_validation_epoch_end

    def break_it(self):
        end(self)
        if self.current_epoch == 1:
            {
                "removed": victim.unlink,
                "replaced": lambda: shutil.copyfile(other, victim),
                "truncated": lambda: os.truncate(victim, 100),
            }[fault]()

    monkeypatch.setattr(PneumoniaClassifier, "on_validation_epoch_end", break_it)
    others = [override for override in tiny if not override.startswith("data.root")]
    where = [f"data.root={root}", "trainer.max_epochs=5", f"tracking.experiment_name=f29 {fault}"]
    outcome = xray("train", *others, *where)
    assert outcome.code == 2, outcome.err
    assert victim.name in outcome.err
    assert ("is gone" if fault == "removed" else "was changed") in outcome.err
    run = last_run(home, f"f29 {fault}")
    assert run.info.status == "FAILED"
    assert victim.name in run.data.tags["reason"]
    history = MlflowClient(f"sqlite:///{home}/mlflow.db").get_metric_history(run.info.run_id, "val/auroc")
    assert len(history) == 2


def test_f29_a_touched_file_is_no_other(xrays, tmp_path):
    from xray_pneumonia.data.images.cache import open_cache
    from xray_pneumonia.data.records import scan

    root = shutil.copytree(xrays, tmp_path / "xrays")
    records = open_cache(scan(root), folder=tmp_path / "cache", image_size=16).records
    paths = [Path(path) for path in records["path"]]
    paths[0].touch()
    paths[1].chmod(0o600)
    os.link(paths[2], tmp_path / "backup")
    assert changed(records) == []
    paths[3].write_bytes(b"")
    assert changed(records) == [f"{records['id'][3]}: was changed"]


class Kills(torch.utils.data.Dataset):
    """Kills the worker that asks it for a batch."""

    def __getitem__(self, _):
        os.kill(os.getpid(), signal.SIGKILL)


class Zeros(torch.utils.data.Dataset):
    """Batches of zeros."""

    def __getitem__(self, _):
        return {"image": torch.zeros(8)}


def test_a_worker_leaves_no_process_behind():
    with pytest.raises(LoaderFailed, match=r"data\.num_workers=0"):
        list(BatchLoader(Kills(), sampler=range(4), workers=2, pin_memory=False))
    assert not multiprocessing.active_children()


def test_a_worker_without_shared_memory_says_so_at_once(monkeypatch, within):
    def full(_):
        raise RuntimeError("unable to allocate shared memory(shm) for file </x>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with within(60), pytest.raises(LoaderFailed, match=r"/dev/shm"):
        list(BatchLoader(Zeros(), sampler=range(4), workers=1, pin_memory=False))
