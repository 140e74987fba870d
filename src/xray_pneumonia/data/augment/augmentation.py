"""Augmentation of training images: the only door to albumentations.

What happens to an image is a pure function of (seed, epoch, record), so it is the same for any number
of workers, any batch size and after a resume. OpenCV, which albumentations calls too, makes the same
changes from numbers drawn for the whole batch, several times faster; on a GPU, torch makes them of the
whole batch at once, where the net is. albumentations itself stays as the reference that both are
tested against.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from xray_pneumonia.data.augment.device import DeviceChanger, Packed, pack
from xray_pneumonia.data.augment.opencv import BORDERS, Changer
from xray_pneumonia.data.augment.parameters import (
    BLUR,
    BOX,
    BOXES,
    CLIP_LIMIT,
    QUALITY,
    SHARPNESS,
    SHRUNK,
    Limits,
    draw,
)
from xray_pneumonia.errors import InputError
from xray_pneumonia.types import BelowOne, Degrees, Fraction, Gray, NonNegative


class Augmentation:
    """Random changes to gray images; every value 0 means: leave the images alone.

    Args:
        rotate: largest rotation, in degrees to either side.
        shift_x: largest horizontal shift, as a fraction of the width.
        shift_y: largest vertical shift, as a fraction of the height.
        zoom: largest zoom in or out, as a fraction, of each side by itself: it hides the shape of the original film.
        shear: largest shear, in degrees.
        border: what fills the space beyond the picture.
        flip_horizontal: probability; it moves the heart to the other side.
        flip_vertical: probability.
        brightness: largest change, as a fraction of the full range.
        contrast: largest change, as a fraction.
        gamma: largest change of the exponent, as a fraction: up to 1 + gamma, down to its inverse.
        equalise: probability of a local equalisation of the gray levels (CLAHE).
        sharpen: probability of a sharpening.
        shrink: probability that the image is shrunk, to 0.4 of its side at most, and enlarged again.
        blur: probability of a Gaussian blur with a standard deviation of up to 2 pixels.
        noise: largest standard deviation of Gaussian noise, as a fraction of the full range.
        compress: probability of a JPEG compression of quality 40 to 95.
        erase: probability that one to three boxes are blanked out.
        engine: `opencv`, or the slower `albumentations`: the same distributions, but other draws.
        device: where this happens: `cpu`, before a batch travels to the net; `net`, beside the net and to the whole
            batch at once, the same changes within rounding; `auto`, beside a net on a GPU, else on the CPU.
    """

    def __init__(
        self,
        *,
        rotate: Degrees,
        shift_x: Fraction,
        shift_y: Fraction,
        zoom: BelowOne,
        shear: Degrees,
        border: Literal["replicate", "constant", "reflect"],
        flip_horizontal: Fraction,
        flip_vertical: Fraction,
        brightness: Fraction,
        contrast: Fraction,
        gamma: NonNegative,
        equalise: Fraction,
        sharpen: Fraction,
        shrink: Fraction,
        blur: Fraction,
        noise: Fraction,
        compress: Fraction,
        erase: Fraction,
        engine: Literal["opencv", "albumentations"],
        device: Literal["auto", "cpu", "net"],
    ) -> None:
        values = {name: value for name, value in locals().items() if name not in {"self", "border", "engine", "device"}}
        if engine == "albumentations" and device == "net":
            raise InputError(
                "augmentation.engine=albumentations augmentation.device=net: albumentations works on the CPU alone; "
                "choose augmentation.device=cpu, or augmentation.engine=opencv"
            )
        self.active = any(values.values())
        self._device = "cpu" if engine == "albumentations" else device
        self._limits = Limits(**values)
        self._change = Changer(border=border)
        self._change_there = DeviceChanger(border=border)
        self._pipeline = _compose(**values, border=border) if self.active and engine == "albumentations" else None

    def __call__(self, images: Gray, *, seed: int, epoch: int, records: Iterable[int]) -> Gray:
        """Augment a batch.

        Args:
            images: (B, H, W) uint8.
            seed: of the run.
            epoch: counted from 0.
            records: B row numbers in the table of records.

        Returns:
            (B, H, W) uint8, a new array.
        """
        if not self.active:
            return images
        if self._pipeline is None:
            changes = draw(self._limits, side=images.shape[1], seed=seed, epoch=epoch, records=records)
            return self._change(images, changes)
        changed = np.empty_like(images)
        for row, record in enumerate(records):
            # One seed for the whole pipeline would start every transform at the same numbers: the brightest images
            # would always be those turned furthest to the right.
            states = np.random.SeedSequence([seed, epoch, int(record)]).generate_state(len(self._pipeline.transforms))
            for transform, state in zip(self._pipeline.transforms, states, strict=True):
                transform.set_random_seed(int(state))
            changed[row] = self._pipeline(image=images[row])["image"]
        return changed

    def is_beside(self, net: torch.device) -> bool:
        """Tell whether images are changed on this device, where the net is, and not before they travel there."""
        return self.active and (self._device == "net" or (self._device == "auto" and net.type == "cuda"))

    def draw(self, *, side: int, seed: int, epoch: int, records: Iterable[int]) -> Packed:
        """Draw what `change` does to a batch of images of `side` pixels; see `__call__`."""
        return pack(draw(self._limits, side=side, seed=seed, epoch=epoch, records=records), side=side)

    def change(self, images: Tensor, changes: Packed) -> Tensor:
        """Change (B, 1, H, W) uint8, on the device where they and their changes are, into a new tensor."""
        return self._change_there(images, changes)


def _compose(**values: Any) -> Any:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else its import asks a server for the newest version
    import albumentations as alb  # two seconds to import, and not needed by augmentation=none

    return alb.Compose(list(_transforms(alb, **values)))


def _transforms(
    alb: Any,
    *,
    rotate: Degrees,
    shift_x: Fraction,
    shift_y: Fraction,
    zoom: BelowOne,
    shear: Degrees,
    border: str,
    flip_horizontal: Fraction,
    flip_vertical: Fraction,
    brightness: Fraction,
    contrast: Fraction,
    gamma: NonNegative,
    equalise: Fraction,
    sharpen: Fraction,
    shrink: Fraction,
    blur: Fraction,
    noise: Fraction,
    compress: Fraction,
    erase: Fraction,
) -> Iterator[Any]:
    """Geometry first, then exposure, then what a detector or a file format does to a picture."""
    if flip_horizontal:
        yield alb.HorizontalFlip(p=flip_horizontal)
    if flip_vertical:
        yield alb.VerticalFlip(p=flip_vertical)
    if any((rotate, shift_x, shift_y, zoom, shear)):
        yield alb.Affine(
            rotate=(-rotate, rotate),
            translate_percent={"x": (-shift_x, shift_x), "y": (-shift_y, shift_y)},
            scale=(1 - zoom, 1 + zoom),
            shear={"x": (-shear, shear), "y": (0, 0)},
            border_mode=BORDERS[border],
            p=1,
        )
    if brightness or contrast:
        yield alb.RandomBrightnessContrast(brightness_limit=brightness, contrast_limit=contrast, p=1)
    if gamma:
        yield alb.RandomGamma(gamma_limit=(100 / (1 + gamma), 100 * (1 + gamma)), p=1)
    if equalise:
        yield alb.CLAHE(clip_limit=CLIP_LIMIT, p=equalise)
    if sharpen:
        yield alb.Sharpen(alpha=SHARPNESS, lightness=(1, 1), p=sharpen)
    if shrink:
        yield alb.Downscale(scale_range=SHRUNK, p=shrink)
    if blur:
        yield alb.GaussianBlur(blur_limit=0, sigma_limit=BLUR, p=blur)
    if noise:
        yield alb.GaussNoise(std_range=(0, noise), p=1)
    if compress:
        yield alb.ImageCompression(quality_range=QUALITY, p=compress)
    if erase:
        yield alb.CoarseDropout(num_holes_range=(1, BOXES), hole_height_range=BOX, hole_width_range=BOX, p=erase)
