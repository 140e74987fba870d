"""A DataLoader that says in one line what became of its workers, and leaves none behind."""

import re
from collections.abc import Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from xray_pneumonia.errors import LoaderFailed

SILENCE = 120.0  # seconds in which the next batch must come from a worker
SHARED_MEMORY = ("bus error", "shared memory", "shm", "unable to mmap", "no space left")
T = TypeVar("T")


class Loader(DataLoader[T]):
    """See DataLoader; `timeout` should be `SILENCE` where there are workers."""

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        """Serve the batches.

        Raises:
            LoaderFailed: a worker was killed, hangs, or had no shared memory.
        """
        batches: Any = super().__iter__()
        try:
            yield from batches
        except (RuntimeError, OSError) as error:
            workers = getattr(batches, "_workers", [])
            if not workers:
                raise
            reason = _explained(str(error), [worker.pid for worker in workers if worker.is_alive()])
            for worker in workers:  # one that was stopped would not heed a mild signal, and be waited for for ever
                worker.kill()
            if reason is None:
                raise
            raise LoaderFailed(reason) from error


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
