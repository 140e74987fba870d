"""Identifies this process, and tells whether another one is still alive: of trainings and of trials alike."""

import getpass
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

TICKS = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # counts on while a laptop sleeps; nobody can set it
STARTED = time.time() - time.clock_gettime(TICKS)


def now() -> int:
    """Return the time in milliseconds since 1970, by the clock as it was when this process began.

    A clock that is set while a run goes on changes neither its duration nor the order of its metrics.
    """
    return int((STARTED + time.clock_gettime(TICKS)) * 1000)


def identity() -> dict[str, Any]:
    """Identify this process by host, boot, container, pid and start time, so that no other is ever taken for it."""
    return dict(_identity_of(os.getpid()))  # asked anew after a fork


def identity_tags() -> dict[str, str]:
    """Identify this process, as tags."""
    return {key: str(value) for key, value in identity().items()}


def user() -> str:
    """Name the user of this process; a container may have no name for it, but has a number."""
    with suppress(OSError, KeyError):
        return getpass.getuser()
    return str(os.getuid())


@lru_cache(maxsize=1)
def _identity_of(pid: int) -> dict[str, Any]:
    born = round(psutil.Process(pid).create_time(), 2)
    return {"host": platform.node(), "boot": _boot(), "space": _pid_namespace(), "pid": pid, "born": born}


def _boot() -> str:
    """Return the id of this machine's boot: one that was restarted runs none of its earlier processes."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _pid_namespace() -> str:
    """Name the container: two of them may share a machine's name and see none of each other's processes."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def alive(process: Mapping[str, Any], *, silent: Callable[[], float], stale_after: float) -> bool:
    """Tell whether a process may still report.

    Args:
        process: its identity; the values may be texts, as tags are.
        silent: counts the seconds since its last sign of life.
        stale_after: seconds for which a process on another machine may be silent.
    """
    if process["host"] != platform.node() or _in_other_container(process):
        return silent() < stale_after
    if process.get("boot", _boot()) != _boot():
        return False
    with suppress(psutil.Error):
        found = psutil.Process(int(process["pid"]))
        same = abs(found.create_time() - float(process["born"])) < 1
        return bool(same and found.status() != psutil.STATUS_ZOMBIE)
    return False


def _in_other_container(process: Mapping[str, Any]) -> bool:
    namespace = process.get("space", _pid_namespace())
    return bool(process.get("boot", _boot()) == _boot() and namespace != _pid_namespace())
