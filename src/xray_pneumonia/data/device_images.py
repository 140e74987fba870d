"""What is done beside the net, on its device: training images may live there, whole, and be changed there.

Then a batch travels as row numbers and the numbers drawn for them, and no step waits for a copy.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from xray_pneumonia.data.augment.augmentation import Augmentation
from xray_pneumonia.data.augment.opencv import shrunk
from xray_pneumonia.data.images.cache import let_go
from xray_pneumonia.errors import InputError
from xray_pneumonia.types import Gray

SHARE = 4  # the images take at most this part of a GPU's free memory: the net needs the rest
PIECE = 1024  # images that travel at once

Residence = Literal["auto", "always", "never"]
log = logging.getLogger(__name__)


class Resident:
    """All images on a device, in one size at a time: the one that was asked for last.

    Args:
        images: (N, H, W) uint8, of the cache.
        device: where they live.
    """

    def __init__(self, images: Gray, *, device: torch.device) -> None:
        self._images, self._device = images, device
        self._pixels: Tensor | None = None  # (N, 1, side, side) uint8

    def __call__(self, rows: Tensor, *, side: int) -> Tensor:
        """Pick the images of these rows (B,), on the device; (B, 1, side, side) uint8."""
        if self._pixels is None or self._pixels.shape[-1] != side:
            self._pixels = None  # make room first
            self._pixels = self._brought(side)
        return self._pixels.index_select(0, rows)

    def _brought(self, side: int) -> Tensor:
        pixels = torch.empty(len(self._images), 1, side, side, dtype=torch.uint8, device=self._device)
        for start in range(0, len(self._images), PIECE):
            piece = shrunk(np.array(self._images[start : start + PIECE]), side)
            pixels[start : start + PIECE, 0] = torch.from_numpy(piece)
            let_go(self._images)
        return pixels


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What is left to do with a training batch beside the net; None where nothing is.

    Args:
        resident: has its images, which did not travel.
        augmentation: changes them.
    """

    resident: Resident | None = None
    augmentation: Augmentation | None = None

    def finish(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Turn what travelled into `image`, with all that goes with it; a batch that has one keeps it."""
        finished = {key: batch[key] for key in ("image", "label", "index", "weight") if key in batch}
        if self.resident is not None and "side" in batch:
            finished["image"] = self.resident(batch["index"], side=batch["side"])
        if self.augmentation is not None and "changes" in batch:
            finished["image"] = self.augmentation.change(finished["image"], batch["changes"])
        return finished


def arrange(net: torch.device, images: Gray, augmentation: Augmentation | None, *, wanted: Residence) -> Beside:
    """Decide what is done beside a net on this device.

    Args:
        net: the device.
        images: (N, H, W) uint8, of the cache.
        augmentation: of training images; None where there is none.
        wanted: `auto` lets the images live on a GPU that has room for them.

    Raises:
        InputError: images that are changed on the CPU are wanted on the device.
    """
    here = augmentation is not None and not augmentation.is_beside(net)
    if here and wanted == "always":
        raise InputError(
            "data.resident=always: the images would have to travel back to be changed on the CPU; choose "
            "augmentation.device=net, or data.resident=auto"
        )
    lives = wanted == "always" or (wanted == "auto" and not here and net.type == "cuda" and _has_room(net, images))
    return Beside(resident=Resident(images, device=net) if lives else None, augmentation=None if here else augmentation)


def _has_room(gpu: torch.device, images: Gray) -> bool:
    free, _ = torch.cuda.mem_get_info(gpu)
    fits = images.nbytes * SHARE <= free
    facts = len(images), images.nbytes / 1e6, "live on" if fits else "stay on the host, too many for", gpu, free / 1e6
    log.info("data: %d images, %.0f MB, %s %s with %.0f MB free", *facts)
    return fits
