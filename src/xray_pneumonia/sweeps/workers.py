"""Starts several processes on one study: each takes the next trial when it is free, so none waits for the slowest."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

ROLE = "XRAY_SWEEP_WORKER"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Role:
    """What the process that starts a worker tells it."""

    parent: str
    session: str
    leader: int
    number: int = 0  # of the worker


def role() -> Role | None:
    """Read the role of this process; None where it is no worker."""
    text = os.environ.get(ROLE)
    return Role(**json.loads(text)) if text else None


def leader_is_gone() -> bool:
    """Tell whether this process is a worker and the process that started it is gone."""
    mine = role()
    return mine is not None and os.getppid() != mine.leader


@contextmanager
def started(count: int, *, parent: str, session: str, threads: int | None) -> Iterator[Callable[[], bool]]:
    """Start workers with this process' own command; at the end of the block ask them to close their runs and exit.

    Args:
        count: of workers.
        parent: id of the parent run.
        session: see `SweepStudy`.
        threads: of each, where the config says so.

    Yields:
        A function that tells whether any of them still runs.
    """
    known = {"parent": parent, "session": session, "leader": os.getpid()}
    command = [sys.executable, "-m", "xray_pneumonia.cli", "train", *sys.argv[1:]]
    gpus = torch.cuda.device_count()
    log.info("%s", word_share(count, gpus=gpus, threads=threads))
    processes = []
    try:
        for number in range(count):
            environment = {
                **os.environ,
                **share(number, count, gpus=gpus),
                ROLE: json.dumps({**known, "number": number}),
            }
            processes.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL))
        yield lambda: any(process.poll() is None for process in processes)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def share(number: int, count: int, *, gpus: int) -> dict[str, str]:
    """Divide the machine: threads for each worker, and one GPU each, in turn where there are fewer.

    Args:
        number: of the worker, from 0.
        count: of workers.
        gpus: that this process may use.
    """
    divided = {name: str(max(1, _cores() // count)) for name in THREADS}
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        divided["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number % gpus]
    return divided


def word_share(count: int, *, gpus: int, threads: int | None) -> str:
    """Say what each worker gets of this machine.

    Args:
        count: of workers.
        gpus: that this process may use.
        threads: of each, where the config says so.
    """
    each, cores = threads or max(1, _cores() // count), _cores()
    crowded = f" with {count * each / cores:.2g} threads on each" if count * each > cores else ""
    most = -(-count // gpus) if gpus else 0
    shared = f"up to {most} on each of {gpus} GPUs" if most > 1 else f"a GPU of its own, {gpus} in all"
    plural = "s" * (each > 1)
    return f"workers={count}: {each} thread{plural} each, {cores} processors{crowded}; {shared if gpus else 'no GPU'}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def capacity(launcher: Any) -> int:
    """Read from a launcher's config how many trials it runs at once."""
    if launcher.get("n_jobs") is not None:
        jobs = int(launcher.n_jobs)
        return jobs if jobs > 0 else os.cpu_count() or 1
    if launcher.get("array_parallelism") is not None:
        return min(int(launcher.array_parallelism), 64)
    return 1
