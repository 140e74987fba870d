"""Which process this is, and whether another one is still alive: of trainings and of trials alike."""

import os
import platform
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
