"""Identifies this process, and tells whether another one is still alive: of trainings and of trials alike."""

import getpass
import hashlib
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
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


def day_and_minute(milliseconds: int) -> str:
    """Write a time since 1970 in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def identity(pid: int | None = None) -> dict[str, Any]:
    """Identify a process, this one by default, by machine, boot, container, pid and start."""
    return dict(_identity_of(pid or os.getpid()))  # asked anew after a fork


def identity_tags() -> dict[str, str]:
    """Identify this process, as tags, with its first sign of life."""
    return {**{key: str(value) for key, value in identity().items()}, "heartbeat": str(int(time.time()))}


def is_own(process: Mapping[str, Any]) -> bool:
    """Tell whether an identity, whose values may be texts, is that of this process."""
    return all(str(process.get(key)) == str(value) for key, value in identity().items())


def user() -> str:
    """Name the user of this process; a container may have no name for it, but has a number."""
    with suppress(OSError, KeyError):
        return getpass.getuser()
    return str(os.getuid())


@lru_cache(maxsize=2)
def _identity_of(pid: int) -> dict[str, Any]:
    born, since_boot = _begin(psutil.Process(pid))
    place = {"host": platform.node(), "machine": _machine(), "boot": _boot(), "space": _pid_namespace()}
    return {**place, "pid": pid, "born": born, "since_boot": since_boot}


def _begin(process: psutil.Process) -> tuple[float, float]:
    """Return when a process began, since 1970 and since the boot: on Linux the first changes when the clock is set."""
    born = process.create_time()
    return round(born, 2), round(born - psutil.boot_time(), 2)


@lru_cache(maxsize=1)
def _machine() -> str:
    """Return a hash of this machine's id, which is not to be published; empty where it has none, as containers do."""
    with suppress(OSError):
        known = Path("/etc/machine-id").read_text(encoding="ascii").strip()
        return hashlib.sha256(known.encode()).hexdigest()[:16] if known else ""
    return ""


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
        stale_after: seconds for which a process that cannot be seen from here may be silent.
    """
    if _is_out_of_sight(process):
        return silent() < stale_after
    if process.get("boot", _boot()) != _boot():
        return False
    with suppress(psutil.Error):
        found = psutil.Process(int(process["pid"]))
        known = float(process["born"]), float(process.get("since_boot", math.nan))
        same = any(abs(now - then) < 1 for now, then in zip(_begin(found), known, strict=True))
        return same and found.status() != psutil.STATUS_ZOMBIE
    return False


def _is_out_of_sight(process: Mapping[str, Any]) -> bool:
    """Tell whether a process runs on another machine, whose name may be this one's, or in another container of it.

    A machine that was restarted is known by its id; without one it may be another machine as well.
    """
    if process["host"] != platform.node():
        return True
    if process.get("boot", _boot()) != _boot():
        return bool(process.get("machine", _machine()) != _machine() or ("machine" in process and not _machine()))
    return bool(process.get("space", _pid_namespace()) != _pid_namespace())
