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
    """What one process gets of a batch.

    Args:
        epoch: counted from 0.
        rows: (B,) numbers in the records.
        weight: what the mean over these rows counts, so that the mean over all processes is that of the whole batch; 0
            where the rows only stand in, since there were fewer than processes; None where one process has them all.
    """

    epoch: int
    rows: Rows
    weight: float | None = None


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

        A batch that processes share carries its `weight` too. Where images do not travel, `side`, their pixels, comes
        instead; where they are changed later, `changes`.
        """
        epoch, rows, weight = hand
        side = side_of(epoch, sides=self._sides, epochs=self._epochs)
        who: dict[str, Any] = {"seed": self._seed, "epoch": epoch, "records": rows}
        labels, index = torch.from_numpy(self._labels[rows]), torch.from_numpy(rows)
        batch: dict[str, Any] = {"label": labels, "index": index}
        if weight is not None:
            batch["weight"] = weight
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

    With several processes and `shuffle`, a batch has `batch_size` rows for each of them, dealt out in turn: together
    they make the steps of one process whose batches are as large. Without it, each takes every n-th row.
    """

    def __init__(self, rows: Rows, *, batch_size: int, shuffle: bool, seed: int) -> None:
        self._rows, self._batch_size, self._shuffle, self._seed = rows, batch_size, shuffle, seed
        self._rank, self._world = 0, 1
        self._begun, self._done = -1, 0
        self.epoch = 0

    def share(self, *, rank: int, world: int) -> None:
        """Serve one of several processes."""
        self._rank, self._world = rank, world

    def go_on(self, *, epoch: int, batch: int) -> None:
        """Start in this epoch, of which so many batches are done already."""
        self.epoch = self._begun = epoch
        self._done = batch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each one."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Hand]:
        """Yield what is dealt to this process."""
        if not self._shuffle:
            mine = self._rows[self._rank :: self._world]
            return iter([Hand(self.epoch, rows) for rows in _cut(mine, self._batch_size)])
        order = np.random.default_rng([self._seed, self.epoch]).permutation(len(self._rows))
        batches = _cut(self._rows[order], self._batch_size * self._world)
        return iter([self._dealt(batch) for batch in batches[self._done if self.epoch == self._begun else 0 :]])

    def _dealt(self, batch: Rows) -> Hand:
        if self._world == 1:
            return Hand(self.epoch, batch)
        rows = batch[self._rank :: self._world]
        weight = len(rows) * self._world / len(batch)
        return Hand(self.epoch, rows if len(rows) else batch[:1], weight)

    def __len__(self) -> int:
        """Count the batches of this process."""
        if self._shuffle:
            return -(-len(self._rows) // (self._batch_size * self._world))
        return -(-len(self._rows[self._rank :: self._world]) // self._batch_size)


def _cut(rows: Rows, size: int) -> list[Rows]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
