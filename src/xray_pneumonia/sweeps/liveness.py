"""Who runs a trial, and whether that process is still alive."""

import os
import platform
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

import psutil
import sqlalchemy as sa
from optuna.storages import RDBStorage

BEAT = 10.0  # seconds between two signs of life


def identity() -> dict[str, Any]:
    """Name this process so that no other, now or later, has the same name."""
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return {**_self(), **({"slurm": job} if job else {})}


@lru_cache(maxsize=1)
def _self_of(pid: int) -> dict[str, Any]:
    return {"host": platform.node(), "pid": pid, "born": round(psutil.Process(pid).create_time(), 2)}


def _self() -> dict[str, Any]:
    return _self_of(os.getpid())  # asked anew after a fork


def alive(who: Mapping[str, Any], *, silent: Callable[[], float], stale_after: float) -> bool:
    """Tell whether a process may still report.

    Args:
        who: an identity.
        silent: counts the seconds since its last sign of life.
        stale_after: how long a process on another machine may be silent.
    """
    if "slurm" in who and (queued := _queued(str(who["slurm"]))) is not None:
        return queued  # a requeued task is silent and will come back
    if who["host"] != platform.node():
        return silent() < stale_after
    with suppress(psutil.Error):
        process = psutil.Process(who["pid"])
        return abs(process.create_time() - who["born"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    return False


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


def silence(storage: RDBStorage, trial_id: int, *, since: float) -> float:
    """Count the seconds since a trial's last sign of life, on the database's own clock.

    Args:
        storage: of the study.
        trial_id: of the trial.
        since: seconds since it started, for a trial that never gave a sign.
    """
    query = sa.text("select heartbeat, current_timestamp from trial_heartbeats where trial_id = :id")
    with storage.engine.connect() as connection:
        row = connection.execute(query, {"id": trial_id}).first()
    if row is None:
        return since
    beat, now = (_moment(value) for value in row)
    return now - beat


def _moment(value: Any) -> float:
    import pandas as pd

    return float(pd.Timestamp(value).tz_localize(None).timestamp())


@contextmanager
def heartbeat(storage: RDBStorage, trial_id: int) -> Iterator[None]:
    """Give a sign of life while the block runs; a database that is away for a while is no reason to stop."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT):
            with suppress(Exception):
                storage.record_heartbeat(trial_id)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=1)
