"""Rows -> batches: which images come together, at which size, and what is done to them, by (seed, epoch) alone."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from xray_pneumonia.data.augment.augmentation import Augmentation
from xray_pneumonia.data.augment.opencv import shrunk
from xray_pneumonia.data.images.cache import ImageCache, let_go
from xray_pneumonia.types import Gray

MAPPED = 2 * 2**20  # bytes read of the cache before their pages are let go: the system maps many around each

Batch = Mapping[str, Any]
Rows = np.ndarray[Any, np.dtype[np.int64]]


class Hand(NamedTuple):
    """Which rows of the records, (B,), make a batch, and in which epoch, counted from 0."""

    epoch: int
    rows: Rows


def side_of(epoch: int, *, sides: Sequence[int], epochs: int) -> int:
    """Tell the side of the images in an epoch, counted from 0: `sides` share the epochs in equal parts, in order."""
    return sides[min(epoch * len(sides) // epochs, len(sides) - 1)]


class Batches(Dataset[Batch]):
    """Whole batches, cut from the cached array by (epoch, row numbers).

    Args:
        cache: the decoded images.
        augmentation: what they go through here; None leaves them alone.
        seed: of the augmentation.
        sides: in pixels, of the images, see `side_of`.
        epochs: of the whole training.
        later: what they go through beside the net, of which only the numbers are drawn here.
        travels: whether the images do; where not, they live beside the net.
    """

    def __init__(
        self,
        cache: ImageCache,
        *,
        augmentation: Augmentation | None,
        seed: int,
        sides: Sequence[int],
        epochs: int,
        later: Augmentation | None = None,
        travels: bool = True,
    ) -> None:
        self._images = cache.images
        self._labels = cache.records["label"].to_numpy(np.float32)
        self._augmentation, self._later, self._travels = augmentation, later, travels
        self._seed, self._sides, self._epochs = seed, sides, epochs
        self._read = 0

    def __getitem__(self, hand: Hand) -> Batch:
        """Give `image` uint8 (B, 1, H, W), `label` float (B,) and `index` (B,), the row in the records.

        Where images do not travel, `side`, their pixels, comes instead; where they are changed later, `changes`.
        """
        epoch, rows = hand
        side = side_of(epoch, sides=self._sides, epochs=self._epochs)
        who: dict[str, Any] = {"seed": self._seed, "epoch": epoch, "records": rows}
        labels, index = torch.from_numpy(self._labels[rows]), torch.from_numpy(rows)
        batch: dict[str, Any] = {"label": labels, "index": index}
        if self._later is not None:
            batch["changes"] = self._later.draw(side=side, **who)
        if not self._travels:
            return batch | {"side": side}
        images: Gray = shrunk(self._rows(rows), side)
        if self._augmentation is not None:
            images = self._augmentation(images, **who)
        return batch | {"image": torch.from_numpy(images)[:, None]}

    def _rows(self, rows: Rows) -> Gray:
        images: Gray = np.asarray(self._images[rows])
        self._read += images.nbytes
        if self._read > MAPPED:
            let_go(self._images)
            self._read = 0
        return images


class AheadLoader(DataLoader[Batch]):
    """Prepares the next batch in a thread while the net works on this one: OpenCV leaves the interpreter's lock."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield the same batches in the same order as without the thread."""
        return self._ahead(super().__iter__())

    def _ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            coming = pool.submit(next, batches, None)
            while (batch := coming.result()) is not None:
                coming = pool.submit(next, batches, None)
                yield batch


class EpochSampler(Sampler[Hand]):
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

    def __iter__(self) -> Iterator[Hand]:
        """Yield the batches of this process."""
        rows = self._rows
        if self._shuffle:
            rows = rows[np.random.default_rng([self._seed, self.epoch]).permutation(len(rows))]
            rows = np.resize(rows, len(rows) + -len(rows) % self._world)
        return iter([Hand(self.epoch, part) for part in _cut(rows[self._rank :: self._world], self._batch_size)])

    def __len__(self) -> int:
        """Count the batches of this process."""
        size = len(self._rows) + (-len(self._rows) % self._world if self._shuffle else 0)
        return -(-len(range(self._rank, size, self._world)) // self._batch_size)


def _cut(rows: Rows, size: int) -> list[Rows]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
