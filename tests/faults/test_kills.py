"""F3: kills at random moments, of whole runs and of the writing of checkpoints alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from xray_pneumonia.training.hashes import verify

from xray_pneumonia.training.checkpoints import STATE, AtomicCheckpointIO, clear, newest_valid


@pytest.mark.long
def test_twenty_kills_of_tiny_runs(tmp_path):
    """`python tests/faults/kills.py 200 --folder DIR` makes 200."""
    command = [sys.executable, Path(__file__).with_name("kills.py"), "20", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def save_for_ever(folder, first, told):
    """Save one checkpoint after the other, and say so each time."""
    for epoch in range(first, 10**6):
        state = {"epoch": epoch, "batch": 0, "trained": False, "identity": {}}
        AtomicCheckpointIO().save_checkpoint({"w": torch.full((20_000,), epoch), STATE: state}, folder / "last.ckpt")
        AtomicCheckpointIO().save_checkpoint({"w": torch.full((20_000,), epoch)}, folder / "best.ckpt")
        os.write(told, b".")


@pytest.mark.slow
def test_two_hundred_kills_of_a_process_that_only_saves(tmp_path):
    torch.set_num_threads(1)
    dice = random.Random(0)
    epoch, drafts = 0, 0
    for _ in range(200):
        listen, tell = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                save_for_ever(tmp_path, epoch + 1, tell)
            finally:
                os._exit(1)
        os.read(listen, 1)
        time.sleep(dice.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        os.close(listen)
        os.close(tell)
        saved = newest_valid(tmp_path)
        assert saved.epoch > epoch
        epoch = saved.epoch
        assert torch.load(saved.path, weights_only=True)["w"][0] == epoch
        verify(tmp_path / "best.ckpt")
        drafts += len(list(tmp_path.glob(".*.tmp")))
        clear(tmp_path, saved)
        assert not list(tmp_path.glob(".*.tmp"))
    assert drafts > 20  # so many kills came in the middle of a write
