"""Which process this is, and whether another one is still alive: of trainings and of trials alike."""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil


def identity() -> dict[str, Any]:
    """Name this process so that no other, now or later, has the same name."""
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return {**_self_of(os.getpid()), **({"slurm": job} if job else {})}  # asked anew after a fork


def who() -> dict[str, str]:
    """Name this process, as tags."""
    return {key: str(value) for key, value in identity().items()}


@lru_cache(maxsize=1)
def _self_of(pid: int) -> dict[str, Any]:
    born = round(psutil.Process(pid).create_time(), 2)
    return {"host": platform.node(), "boot": _boot(), "space": _space(), "pid": pid, "born": born}


def _boot() -> str:
    """Name the boot of this machine: one that was restarted runs none of its earlier processes."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _space() -> str:
    """Name the container: two of them may share a machine's name and see none of each other's processes."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def alive(who: Mapping[str, Any], *, silent: Callable[[], float], stale_after: float) -> bool:
    """Tell whether a process may still report.

    Args:
        who: an identity; its values may be texts, as tags are.
        silent: counts the seconds since its last sign of life.
        stale_after: how long a process on another machine may be silent.
    """
    if "slurm" in who and (queued := _queued(str(who["slurm"]))) is not None:
        return queued  # a requeued task is silent and will come back
    if who["host"] != platform.node() or _elsewhere(who):
        return silent() < stale_after
    if who.get("boot", _boot()) != _boot():
        return False
    with suppress(psutil.Error):
        process = psutil.Process(int(who["pid"]))
        same = abs(process.create_time() - float(who["born"])) < 1
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _elsewhere(who: Mapping[str, Any]) -> bool:
    """Tell whether a process of this very boot lives in another container."""
    return bool(who.get("boot", _boot()) == _boot() and who.get("space", _space()) != _space())


def _queued(job: str) -> bool | None:
    """Ask Slurm whether it still holds a job; None where it cannot be asked."""
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "--noheader", "--format=%T", "--jobs", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    states = set(done.stdout.split())
    return bool(states & {"PENDING", "RUNNING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "COMPLETING"})


def queue_is_empty() -> bool:
    """Tell whether Slurm holds no job of this user; False where there is no Slurm to ask."""
    if shutil.which("squeue") is None:
        return False
    try:
        done = subprocess.run(["squeue", "--noheader", "--me"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0 and not done.stdout.strip()
