"""F2, F4, F5, F6: checkpoints survive kills at renames, full disks and folders that become read-only."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from xray_pneumonia.training.checkpoints import newest_valid

pytestmark = pytest.mark.long


def needs(*tools):
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(tools)}")


def mounts():
    needs("unshare", "mount")
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("may not mount here")


SAVE = """
import sys, torch
from pathlib import Path
from xray_pneumonia.training.checkpoints import AtomicCheckpointIO, STATE
folder, sizes = Path(sys.argv[1]), [int(size) for size in sys.argv[2:]]
for size in sizes:
    state = {"epoch": size, "trained": False, "identity": {}}
    AtomicCheckpointIO().save_checkpoint({"w": torch.ones(size), STATE: state}, folder / "last.ckpt")
    print(size, flush=True)
"""


def save(folder, *sizes, around=()):
    command = [*around, sys.executable, "-c", SAVE, str(folder), *map(str, sizes)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("rename", range(1, 5))
def test_killed_at_any_rename_a_whole_checkpoint_is_there(tmp_path, rename):
    needs("strace")
    assert save(tmp_path, 1, 2).returncode == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.ckpt")}
    inject = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-o",
        "/dev/null",
        "-e",
        f"inject=rename,renameat,renameat2:signal=KILL:when={rename}",
    ]
    done = save(tmp_path, 3, around=inject)
    saved = newest_valid(tmp_path)
    assert saved is not None
    if rename < 4:  # the hash, the way back, the checkpoint: three renames
        assert done.returncode != 0
        after = [path.read_bytes() for path in tmp_path.glob("*.ckpt")]
        assert before["last.ckpt"] in after
        assert saved.epoch in ({2} if rename < 3 else {2, 3})  # strace kills before the call, or after it
    else:
        assert (done.returncode, saved.epoch) == (0, 3)
    assert save(tmp_path, 4).returncode == 0
    assert newest_valid(tmp_path).epoch == 4
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_keeps_the_old_checkpoint_byte_for_byte_and_says_what_is_missing(tmp_path):
    mounts()
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    inside = f'mount -t tmpfs -o size=1m tmpfs {disk} && "$@"; code=$?; cp -r {disk} {copy}; exit $code'
    done = save(disk, 100_000, 500_000, around=["unshare", "-m", "sh", "-c", inside, "sh"])
    assert done.returncode == 1
    assert done.stdout.split() == ["100000"]
    assert "last.ckpt: cannot be saved: it needs 200" in done.stderr
    assert newest_valid(copy).epoch == 100_000
    assert not list(copy.glob(".*"))


def test_a_full_disk_fails_the_run(place):
    mounts()
    folder = place.home / "artifacts" / place.name
    mounted = f'mkdir -p {folder} && mount -t tmpfs -o size=400k tmpfs {folder} && exec "$@"'
    large = ["model.width=16"]  # two of its checkpoints are more than the disk holds
    training = place.train_inside("unshare", "-m", "sh", "-c", mounted, "sh", overrides=large)
    assert training.code == 1, training.err
    assert "cannot be saved: it needs" in training.err
    assert "last.ckpt" in training.err or "best.ckpt" in training.err
    assert place.run.info.status == "FAILED"
    assert "CheckpointNotSaved" in place.run.data.tags["reason"]


def test_a_full_disk_is_named_by_predict_and_keeps_what_is_answered(tmp_path, xrays):
    mounts()
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    inside = f'mount -t tmpfs -o size=24k tmpfs {disk} && "$@"; code=$?; cp -r {disk}/out {copy}; exit $code'
    predict = [sys.executable, "-m", "xray_pneumonia.cli", "predict", f"input={xrays}", f"output={disk}/out"]
    command = ["unshare", "-m", "sh", "-c", inside, "sh", *predict, "batch_size=4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert f"output={disk}/out: cannot be written: No space left on device; make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert len((copy / "predictions.jsonl").read_text().splitlines()) > 4


def test_a_full_tmpdir_does_not_matter(place, tmp_path):
    mounts()
    full = tmp_path / "full"
    full.mkdir()
    mounted = f'mount -t tmpfs -o size=64k tmpfs {full} && dd if=/dev/zero of={full}/x bs=1k 2>/dev/null; exec "$@"'
    training = place.train_inside("unshare", "-m", "sh", "-c", mounted, "sh", TMPDIR=str(full))
    assert training.code == 0, training.err
    assert newest_valid(place.checkpoints).trained


def test_a_folder_that_can_no_longer_be_written_stops_the_run_at_the_first_save(place):
    needs("mount")
    training = place.train().until("STEP", 13).signal(signal.SIGSTOP)  # a busy machine mounts late
    subprocess.run(["mount", "--bind", place.checkpoints, place.checkpoints], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place.checkpoints], check=True)
        assert training.signal(signal.SIGCONT).end() == 1, training.err
    finally:
        subprocess.run(["umount", "-l", place.checkpoints], check=True)
    assert ".ckpt: cannot be saved" in training.err  # the best one of epoch 2, or the last one
    assert "Read-only file system" in training.err
    assert place.run.info.status == "FAILED"
    assert newest_valid(place.checkpoints).epoch == 1
    assert place.resume().end() == 0
