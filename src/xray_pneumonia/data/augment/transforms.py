"""Define every augmentation once: its config keys, the numbers it draws, its OpenCV kernel, its reference.

To add one, write a class here, list it in `TRANSFORMS`, and set its keys in `conf/augmentation/none.yaml`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from xray_pneumonia.data.augment.parameters import STARTS, Chosen, Numbers, Transform, between, shared, shared_noise
from xray_pneumonia.types import BelowOne, Degrees, Fraction, Gray, NonNegative, Vector

cv2.setNumThreads(0)  # an image is too small to be worth sharing out, and torch uses the cores

BORDERS = {"replicate": cv2.BORDER_REPLICATE, "constant": cv2.BORDER_CONSTANT, "reflect": cv2.BORDER_REFLECT_101}
FINE = 128  # pixels of the side to which sizes in pixels refer; in larger images they grow with it
BOXES, BOX_SIDES = 3, (0.05, 0.2)  # how many, and their sides as fractions of the image's


@dataclass(frozen=True, kw_only=True)
class Geometry(Transform):
    """Flips, scales, rotates, shears and shifts about the centre, in this order."""

    flip_horizontal: Fraction  # probability; it moves the heart to the other side
    flip_vertical: Fraction  # probability
    zoom: BelowOne  # largest zoom in or out, of each side by itself: it hides the shape of the original image
    rotate: Degrees  # largest rotation to either side
    shear: Degrees  # largest shear
    shift_x: Fraction  # largest horizontal shift, as a fraction of the width
    shift_y: Fraction  # largest vertical shift, as a fraction of the height
    border: Literal["replicate", "constant", "reflect"]  # what fills the space beyond the image

    stream = shared(*range(8))

    def draw(self, numbers: Vector, *, side: int) -> tuple[Chosen, Numbers]:
        """Make matrices (B, 2, 3) that map old to new pixel coordinates (x, y)."""
        flip_x, flip_y = numbers[0] < self.flip_horizontal, numbers[1] < self.flip_vertical
        signed = 2 * numbers[2:] - 1
        scale_x, scale_y = 1 + self.zoom * signed[0], 1 + self.zoom * signed[1]
        angle = np.deg2rad(self.rotate * signed[2])
        lean = np.tan(np.deg2rad(self.shear * signed[3]))
        shift_x, shift_y = np.trunc(self.shift_x * signed[4] * side), np.trunc(self.shift_y * signed[5] * side)
        cosine, sine = np.cos(angle), np.sin(angle)
        scale_x, scale_y = np.where(flip_x, -scale_x, scale_x), np.where(flip_y, -scale_y, scale_y)
        a, b = (cosine - lean * sine) * scale_x, (sine + lean * cosine) * scale_y
        c, d = -sine * scale_x, cosine * scale_y
        centre = side / 2 - 0.5
        rows = [[a, b, shift_x + centre * (1 - a - b)], [c, d, shift_y + centre * (1 - c - d)]]
        return _all(numbers), np.moveaxis(np.array(rows), -1, 0)

    def apply(self, image: Gray, parameters: Any) -> Any:
        """Interpolate linearly."""
        return cv2.warpAffine(image, parameters, image.shape[::-1], borderMode=BORDERS[self.border])

    def reference(self, alb: Any) -> Iterator[Any]:
        """Flip, then Affine."""
        if self.flip_horizontal:
            yield alb.HorizontalFlip(p=self.flip_horizontal)
        if self.flip_vertical:
            yield alb.VerticalFlip(p=self.flip_vertical)
        if any((self.rotate, self.shift_x, self.shift_y, self.zoom, self.shear)):
            yield alb.Affine(
                rotate=(-self.rotate, self.rotate),
                translate_percent={"x": (-self.shift_x, self.shift_x), "y": (-self.shift_y, self.shift_y)},
                scale=(1 - self.zoom, 1 + self.zoom),
                shear={"x": (-self.shear, self.shear), "y": (0, 0)},
                border_mode=BORDERS[self.border],
                p=1,
            )


@dataclass(frozen=True, kw_only=True)
class Exposure(Transform):
    """Changes contrast and brightness, rounded down to gray levels, then gamma."""

    brightness: Fraction  # largest change, as a fraction of the full range
    contrast: Fraction  # largest change, as a fraction
    gamma: NonNegative  # largest change of the exponent, as a fraction: up to 1 + gamma, down to its inverse

    stream = shared(8, 9, 10)

    def draw(self, numbers: Vector, *, side: int) -> tuple[Chosen, Numbers]:
        """Make tables (B, 256) uint8 of the new gray levels."""
        signed = 2 * numbers[:, :, None] - 1
        lines = np.arange(256) * (1 + self.contrast * signed[1]) + 255 * self.brightness * signed[0]
        lines = np.clip(lines, 0, 255).astype(np.uint8)
        exponents = between(numbers[2][:, None], (1 / (1 + self.gamma), 1 + self.gamma))
        curves = ((np.arange(256) / 255) ** exponents * 255).astype(np.uint8)
        return _all(numbers), np.take_along_axis(curves, lines.astype(np.intp), axis=1)

    def apply(self, image: Gray, parameters: Any) -> Any:
        """Look each gray level up."""
        return cv2.LUT(image, parameters)

    def reference(self, alb: Any) -> Iterator[Any]:
        """Contrast and brightness, then gamma."""
        if self.brightness or self.contrast:
            yield alb.RandomBrightnessContrast(brightness_limit=self.brightness, contrast_limit=self.contrast, p=1)
        if self.gamma:
            yield alb.RandomGamma(gamma_limit=(100 / (1 + self.gamma), 100 * (1 + self.gamma)), p=1)


@dataclass(frozen=True, kw_only=True)
class Equalise(Transform):
    """Equalises gray levels locally: CLAHE (Zuiderveld, Graphics Gems IV, 1994)."""

    equalise: Fraction  # probability

    stream = shared(11, 17)
    limits = (1.0, 3.0)  # clip limits, in mean counts of a gray level in a tile

    def apply(self, image: Gray, parameters: Any) -> Any:
        """Equalise 8 x 8 tiles."""
        return cv2.createCLAHE(clipLimit=parameters, tileGridSize=(8, 8)).apply(image)

    def reference(self, alb: Any) -> Iterator[Any]:
        """CLAHE."""
        yield alb.CLAHE(clip_limit=self.limits, p=self.equalise)


@dataclass(frozen=True, kw_only=True)
class Sharpen(Transform):
    """Adds a Laplacian of 3 x 3 pixels, in proportion above 128 x 128."""

    sharpen: Fraction  # probability

    stream = shared(12, 18)
    limits = (0.1, 0.6)  # strengths

    def apply(self, image: Gray, parameters: Any) -> Any:
        """Filter with a kernel whose sum is 1."""
        scale = _enlarged(image)
        size = 2 * round((math.sqrt(1 + 8 * scale**2) - 1) / 2) + 1
        strength = parameters * (9 / size**2) * (8 * scale**2 / (size**2 - 1))  # so that a curve changes as much
        kernel = np.full((size, size), -strength, np.float32)
        kernel[size // 2, size // 2] = 1 + (size**2 - 1) * strength
        return cv2.filter2D(image, -1, kernel)

    def reference(self, alb: Any) -> Iterator[Any]:
        """Sharpen."""
        yield alb.Sharpen(alpha=self.limits, lightness=(1, 1), p=self.sharpen)


@dataclass(frozen=True, kw_only=True)
class Shrink(Transform):
    """Shrinks the image, to 0.4 of its side at most, and enlarges it again."""

    shrink: Fraction  # probability

    stream = shared(13, 19)
    limits = (0.4, 0.8)  # scales, as fractions of the side

    def apply(self, image: Gray, parameters: Any) -> Any:
        """Take the nearest pixel both times."""
        small = cv2.resize(image, None, fx=parameters, fy=parameters, interpolation=cv2.INTER_NEAREST)
        return cv2.resize(small, image.shape[::-1], interpolation=cv2.INTER_NEAREST)

    def reference(self, alb: Any) -> Iterator[Any]:
        """Downscale."""
        yield alb.Downscale(scale_range=self.limits, p=self.shrink)


@dataclass(frozen=True, kw_only=True)
class Blur(Transform):
    """Blurs with a Gaussian of up to 2 pixels, in proportion above 128 x 128."""

    blur: Fraction  # probability

    stream = shared(14, 20)
    limits = (0.3, 2.0)  # standard deviations in pixels

    def apply(self, image: Gray, parameters: Any) -> Any:
        """Filter with a kernel that reaches 3.5 standard deviations to either side, as Pillow's does."""
        deviation = parameters * _enlarged(image)
        reach = int(deviation * 3.5)
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
        kernel = (weights / weights.sum()).astype(np.float32)
        return cv2.sepFilter2D(image, -1, kernel, kernel)

    def reference(self, alb: Any) -> Iterator[Any]:
        """GaussianBlur."""
        yield alb.GaussianBlur(blur_limit=0, sigma_limit=self.limits, p=self.blur)


@dataclass(frozen=True, kw_only=True)
class Noise(Transform):
    """Adds Gaussian noise."""

    noise: Fraction  # largest standard deviation, as a fraction of the full range

    stream = shared(21, 22)

    def draw(self, numbers: Vector, *, side: int) -> tuple[Chosen, Numbers]:
        """Draw standard deviations in gray levels, and where each image starts in the shared noise; (B, 2)."""
        return _all(numbers), np.stack([numbers[0] * 255 * self.noise, np.trunc(numbers[1] * STARTS)], axis=1)

    def apply(self, image: Gray, parameters: Any) -> Any:
        """Add a part of the shared noise."""
        deviation, start = float(parameters[0]), int(parameters[1])
        noise = shared_noise(image.size)[start : start + image.size].reshape(image.shape)
        return cv2.addWeighted(image, 1, noise, deviation, 0, dtype=cv2.CV_8U)

    def reference(self, alb: Any) -> Iterator[Any]:
        """GaussNoise."""
        yield alb.GaussNoise(std_range=(0, self.noise), p=1)


@dataclass(frozen=True, kw_only=True)
class Compress(Transform):
    """Compresses as JPEG, quality 40 to 95."""

    compress: Fraction  # probability

    stream = shared(15, 23)
    limits = (40, 96)  # of the quality, rounded down

    def apply(self, image: Gray, parameters: Any) -> Any:
        """Write a file in memory and read it."""
        _, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, int(parameters)))
        return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)

    def reference(self, alb: Any) -> Iterator[Any]:
        """ImageCompression."""
        yield alb.ImageCompression(quality_range=(40, 95), p=self.compress)


@dataclass(frozen=True, kw_only=True)
class Erase(Transform):
    """Blanks out one to three boxes."""

    erase: Fraction  # probability

    stream = shared(16, *range(24, 37))

    def draw(self, numbers: Vector, *, side: int) -> tuple[Chosen, Numbers]:
        """Draw boxes (B, 3, 4): top, bottom, left, right in pixels, empty ones where there are fewer than three."""
        chosen, count, (height, width, top, left) = (
            numbers[0] < self.erase,
            numbers[1],
            numbers[2:].reshape(4, BOXES, -1),
        )
        drawn = chosen & (np.arange(BOXES)[:, None] <= np.floor(count * BOXES))
        height, width = ((side * between(each, BOX_SIDES)).astype(np.int64) * drawn for each in (height, width))
        top, left = (top * (side - height + 1)).astype(np.int64), (left * (side - width + 1)).astype(np.int64)
        return chosen, np.moveaxis(np.stack([top, top + height, left, left + width]), (0, 1, 2), (2, 1, 0))

    def apply(self, image: Gray, parameters: Any) -> Any:
        """Set the boxes to 0."""
        for top, bottom, left, right in parameters:
            image[top:bottom, left:right] = 0
        return image

    def reference(self, alb: Any) -> Iterator[Any]:
        """CoarseDropout."""
        yield alb.CoarseDropout(
            num_holes_range=(1, BOXES), hole_height_range=BOX_SIDES, hole_width_range=BOX_SIDES, p=self.erase
        )


# In the order of their application: geometry, exposure, then what a detector or a file format does to an image.
TRANSFORMS = (Geometry, Exposure, Equalise, Sharpen, Shrink, Blur, Noise, Compress, Erase)


def _enlarged(image: Gray) -> float:
    """Return by how much sizes in pixels grow with the image."""
    return max(1.0, len(image) / FINE)


def _all(numbers: Vector) -> Chosen:
    return np.ones(numbers.shape[1], bool)
