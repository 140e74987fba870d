"""Serve batches: which images come together, at which size and how augmented, by (seed, epoch) alone."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Timer
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from xray_pneumonia.data.images.cache import ImageCache, release_pages
from xray_pneumonia.errors import LoaderFailed
from xray_pneumonia.types import Gray

TIMEOUT = 120.0  # seconds in which the next batch must come from a worker
MAPPED = 2 * 2**20  # bytes read of the cache before their pages are unmapped: the system maps many around each
NO_SPACE = ("bus error", "shared memory", "shm", "unable to mmap", "no space left")

Batch = Mapping[str, Any]
Rows = np.ndarray[Any, np.dtype[np.int64]]


class BatchRequest(NamedTuple):
    """The rows (B,) of the records that make up one batch of an epoch, counted from 0."""

    epoch: int
    rows: Rows


class Batches(Dataset[Batch]):
    """Whole batches, cut from the cached array.

    Args:
        cache: the decoded images.
        augment: changes images (B, H, W), by `epoch` and `records`; None leaves them as they are.
        sides: of the images, in pixels: they share the epochs in equal parts, in order.
        epochs: of the whole training.
    """

    def __init__(
        self, cache: ImageCache, *, augment: Callable[..., Gray] | None, sides: Sequence[int], epochs: int
    ) -> None:
        self._images = cache.images
        self._labels = cache.records["label"].to_numpy(np.float32)
        self._augment, self._sides, self._epochs = augment, sides, epochs
        self._read = 0

    def __getitem__(self, request: BatchRequest) -> Batch:
        """Return `image` uint8 (B, 1, H, W), `label` float (B,) and `index` (B,), the row in the records."""
        epoch, rows = request
        side = self._sides[min(epoch * len(self._sides) // self._epochs, len(self._sides) - 1)]
        images = _resized(self._rows(rows), side)
        if self._augment is not None:
            images = self._augment(images, epoch=epoch, records=rows)
        batch = {"image": torch.from_numpy(images)[:, None], "label": torch.from_numpy(self._labels[rows])}
        return batch | {"index": torch.from_numpy(rows)}

    def _rows(self, rows: Rows) -> Gray:
        images: Gray = np.asarray(self._images[rows])
        self._read += images.nbytes
        if self._read > MAPPED:
            release_pages(self._images)
            self._read = 0
        return images


def _resized(images: Gray, side: int) -> Gray:
    """Average (B, H, W) over areas to (B, side, side); images of that side stay as they are."""
    if images.shape[1] == side:
        return images
    return np.stack([cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images])


class BatchLoader(DataLoader[Batch]):
    """A DataLoader that prepares the next batch while the model works on this one.

    Without workers a thread does: NumPy and OpenCV release the interpreter lock. With workers, a failure of one of them
    is explained in one line, and none is left behind.
    """

    def __init__(self, batches: Dataset[Batch], *, sampler: Sampler[Any], workers: int, pin_memory: bool) -> None:
        super().__init__(
            batches,
            sampler=sampler,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_in_shared_memory if workers else None,  # type: ignore[arg-type]  # without batch_size it gets one item
            pin_memory=pin_memory,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield the batches in order.

        Raises:
            LoaderFailed: a worker was killed, hangs, or had no shared memory.
        """
        if not self.num_workers:
            yield from _prefetched(super().__iter__())
            return
        late: list[int] = []
        try:
            with self._in_time(late):
                batches = super().__iter__()
            while True:
                with self._in_time(late):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch
        except (RuntimeError, OSError, EOFError) as error:
            for worker in self._workers:
                with suppress(RuntimeError):  # torch's signal handler reports that it was killed
                    worker.kill()  # one that is stopped ignores SIGTERM, and multiprocessing would wait for it at exit
                    worker.join()
            reason = _explained(str(error), late)
            if reason is None:
                raise
            raise LoaderFailed(reason) from error

    @contextmanager
    def _in_time(self, late: list[int]) -> Iterator[None]:
        """Kill the workers where the next batch takes too long, and note their pids.

        Torch's `timeout` does not end the wait for a batch that is ready but held by a worker that is stopped.
        """

        def give_up() -> None:
            late.extend(worker.pid for worker in self._workers)
            for worker in self._workers:
                worker.kill()

        timer = Timer(TIMEOUT, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @property
    def _workers(self) -> list[Any]:
        return getattr(self._iterator, "_workers", [])


def _prefetched(batches: Iterator[Batch]) -> Iterator[Batch]:
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def _in_shared_memory(batch: Batch) -> Batch:
    """Move a batch to shared memory in the worker itself, where a lack of room is an error.

    Torch would do it in a thread that drops the batch, for which the training then waits.
    """
    for value in batch.values():
        value.share_memory_()
    return batch


def _explained(message: str, late: list[int]) -> str | None:
    """Say what happened to the workers and what helps; None for another kind of error.

    `late`: the pids of the workers that were killed because no batch came in time.
    """
    if late:
        return (
            f"no batch came for {TIMEOUT:g} s from the workers (pid {', '.join(map(str, late))}): one of them hangs; "
            "data.num_workers=0 prepares batches in the main process"
        )
    if any(word in message.lower() for word in NO_SPACE):
        return (
            "a worker that prepares batches found no room in shared memory (/dev/shm); data.num_workers=0 needs none "
            "of it, or make it larger (docker: --shm-size=1g)"
        )
    if dead := re.search(r"worker \(pid\(?s?\)? ([\d, ]+)\) (?:is killed by|exited)[^.]*", message):
        return (
            f"{dead.group(0)}; the last checkpoint is whole. Was it out of memory? Fewer workers need less: "
            "data.num_workers=0"
        )
    return None


class EpochSampler(Sampler[BatchRequest]):
    """Deal the rows into batches: their order is a pure function of (seed, epoch), or stays as it is.

    Several processes take the rows in turn, as with torch's DistributedSampler: with `shuffle`, the first rows of an
    epoch come again where the rows do not divide evenly; without it, every row comes once.
    """

    def __init__(self, rows: Rows, *, batch_size: int, shuffle: bool, seed: int) -> None:
        self._rows, self._batch_size, self._shuffle, self._seed = rows, batch_size, shuffle, seed
        self._rank, self._world = 0, 1
        self.epoch = 0

    def share(self, *, rank: int, world: int) -> None:
        """Serve one of several processes."""
        self._rank, self._world = rank, world

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each one."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[BatchRequest]:
        """Yield the batches of this process."""
        rows, size = self._shared(), self._batch_size
        return iter([BatchRequest(self.epoch, rows[start : start + size]) for start in range(0, len(rows), size)])

    def __len__(self) -> int:
        """Count the batches of this process."""
        return -(-len(self._shared()) // self._batch_size)

    def _shared(self) -> Rows:
        """Return the rows of this process in this epoch, in their order."""
        rows = self._rows
        if self._shuffle:
            rows = rows[np.random.default_rng([self._seed, self.epoch]).permutation(len(rows))]
            rows = np.resize(rows, len(rows) + -len(rows) % self._world)
        return rows[self._rank :: self._world]
