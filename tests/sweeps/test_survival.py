"""A sweep that is killed goes on: nothing lost, nothing doubled, every status true."""

import os
import random
import signal
import subprocess
import time
from contextlib import suppress

import psutil
import pytest


def kill_after(command, seconds):
    """Kill it after so many seconds of its own computing: a busy machine would kill nothing but imports."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    seen = psutil.Process(process.pid)
    end = time.monotonic() + 30 * seconds
    while time.monotonic() < end and process.poll() is None and sum(seen.cpu_times()[:2]) < seconds:
        time.sleep(0.05)
    with suppress(ProcessLookupError):  # it was done
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finish(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_twenty_kills_of_twenty_trials(command, records):
    command += ("optimizer.lr=tag(log,interval(1e-4,1e-2))", "sweep.n_trials=20", "sweep.name=kill")
    dice = random.Random(0)
    for _ in range(20):
        kill_after(command, dice.uniform(3, 14))
    finish(command)
    records.require_accounted("kill", 20)


@pytest.mark.long
def test_a_killed_grid_is_completed_without_a_point_twice(command, records):
    command += ("optimizer.lr=1e-4,3e-4,1e-3,3e-3", "sweep.name=grid")
    for seconds in (9, 8):
        kill_after(command, seconds)
    finish(command)
    records.require_accounted("grid", 4)
    complete = [trial for trial in records.trials("grid") if trial.state.name == "COMPLETE"]
    assert sorted(trial.params["optimizer.lr"] for trial in complete) == ["0.0001", "0.0003", "0.001", "0.003"]
