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

from xray_pneumonia.errors import Stopped
from xray_pneumonia.training.checkpoints import STATE, AtomicCheckpointIO, clean_up, newest_valid, verify


@pytest.mark.long
def test_twenty_kills_of_tiny_runs(tmp_path):
    """`python tests/faults/kills.py 200 --folder DIR` makes 200."""
    command = [sys.executable, Path(__file__).with_name("kills.py"), "20", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def save_for_ever(folder, first, report):
    """Save one checkpoint after the other, and write a dot each time, until SIGTERM raises as in the command line."""

    def stop(number, _):
        raise Stopped(number)

    signal.signal(signal.SIGTERM, stop)
    try:
        for epoch in range(first, 10**6):
            weights, state = torch.full((20_000,), epoch), {"epoch": epoch, "trained": False, "identity": {}}
            AtomicCheckpointIO().save_checkpoint({"w": weights, STATE: state}, folder / "last.ckpt")
            AtomicCheckpointIO().save_checkpoint({"w": weights}, folder / "best.ckpt")
            os.write(report, b".")
    except Stopped as stopped:
        os._exit(stopped.exit_code)
    finally:
        os._exit(1)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)])
def test_two_hundred_stops_of_a_process_that_only_saves(tmp_path, number, code):
    torch.set_num_threads(1)
    random_moment = random.Random(0)
    epoch, drafts = 0, 0
    for _ in range(200):
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:
            save_for_ever(tmp_path, epoch + 1, send)
        os.read(receive, 1)
        time.sleep(random_moment.uniform(0, 0.02))
        os.kill(child, number)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
        os.close(receive)
        os.close(send)
        saved = newest_valid(tmp_path)
        assert saved.epoch > epoch
        epoch = saved.epoch
        assert torch.load(saved.path, weights_only=True)["w"][0] == epoch
        verify(tmp_path / "best.ckpt")
        drafts += len(list(tmp_path.glob(".*.tmp")))
        clean_up(tmp_path, saved)
        assert not list(tmp_path.glob(".*.tmp"))
    assert (drafts > 20) == (number == signal.SIGKILL)  # so many kills came in the middle of a write
