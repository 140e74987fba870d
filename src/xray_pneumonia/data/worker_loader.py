"""A DataLoader that says in one line what became of its workers, and leaves none behind."""

import atexit
import contextlib
import ctypes
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar
from weakref import WeakSet

from torch import Tensor
from torch.utils.data import DataLoader, default_convert

from xray_pneumonia.errors import LoaderFailed

SILENCE = 120.0  # seconds in which the next batch must come from a worker
SHARED_MEMORY = ("bus error", "shared memory", "shm", "unable to mmap", "no space left")
PR_SET_PDEATHSIG = 1  # of Linux's prctl: which signal comes when the thread that made this process is gone
T = TypeVar("T")
_with_workers: WeakSet[Any] = WeakSet()  # torch's iterators


class Loader(DataLoader[T]):
    """See DataLoader; `timeout` should be `SILENCE` where there are workers.

    A worker that is stopped or stuck heeds no SIGTERM, the last thing that torch and multiprocessing say to it before
    one gives up and the other waits for ever. Here SIGKILL is the last word: after a failure, when the loader is let
    go, at exit; and Linux says it where this process is itself killed.
    """

    _batches: Any = None  # torch's latest iterator

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        """Serve the batches.

        Raises:
            LoaderFailed: a worker was killed, hangs, or had no shared memory.
        """
        try:
            yield from super().__iter__()  # the call, too, waits for workers that are there from the epoch before
        except (RuntimeError, OSError) as error:
            workers = getattr(self._batches, "_workers", [])
            reason = _explained(str(error), [worker.pid for worker in workers if worker.is_alive()])
            if not workers:
                raise
            _dismiss(self._batches)
            if reason is None:
                raise
            raise LoaderFailed(reason) from error

    def _get_iterator(self) -> Any:
        if self.num_workers:
            self.worker_init_fn, self.collate_fn = _die_with_parent, _shared
        self._batches = super()._get_iterator()
        for worker in getattr(self._batches, "_workers", []):
            worker.terminate = worker.kill
            _with_workers.add(self._batches)
        return self._batches


def _dismiss(batches: Any) -> None:
    """Ask the workers to go, wait for five seconds, end those that did not."""
    with contextlib.suppress(RuntimeError):  # torch says once more that one was killed
        batches._shutdown_workers()


@atexit.register  # later than multiprocessing did, so it runs before
def _dismiss_all() -> None:
    for batches in list(_with_workers):
        _dismiss(batches)


def _die_with_parent(_: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _shared(batch: Any) -> Any:
    """Move a batch into shared memory in the worker itself, where no room is an error.

    Left to torch it happens in a thread that drops what it cannot move, and the batch is waited for in vain.
    """
    batch = default_convert(batch)  # type: ignore[no-untyped-call]
    for tensor in _tensors(batch):
        tensor.share_memory_()  # type: ignore[no-untyped-call]
    return batch


def _tensors(part: Any) -> Iterator[Tensor]:
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, Mapping | list | tuple):
        for one in part.values() if isinstance(part, Mapping) else part:
            yield from _tensors(one)


def _explained(said: str, alive: list[int]) -> str | None:
    """Say what happened and the cure; None where it is no matter of workers."""
    if any(word in said.lower() for word in SHARED_MEMORY):
        return (
            "a worker that prepares batches found no room in shared memory (/dev/shm); data.num_workers=0 needs none "
            "of it, or make it larger (docker: --shm-size=1g)"
        )
    dead = re.search(r"worker \(pid\(?s?\)? ([\d, ]+)\) (?:is killed by|exited)[^.]*", said)
    if dead:
        return (
            f"{dead.group(0)}; the last checkpoint is whole. Was it out of memory? Fewer workers need less: "
            "data.num_workers=0"
        )
    if "timed out" in said:
        return (
            f"no batch came for {SILENCE:g} s from the workers (pid {', '.join(map(str, alive))}): one of them hangs; "
            "data.num_workers=0 prepares batches in the main process"
        )
    return None
