"""What happens to each image of a batch, drawn before any pixel is touched.

Every number is a pure function of (seed, epoch, record), and those of a batch are drawn together: a generator for each
image, or a library's own sampling, costs more than the pixels do.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xray_pneumonia.types import BelowOne, Degrees, Fraction, NonNegative

CLIP_LIMIT, SHARPNESS, SHRUNK, BLUR = (1.0, 3.0), (0.1, 0.6), (0.4, 0.8), (0.3, 2.0)
QUALITY, BOX, BOXES = (40, 95), (0.05, 0.2), 3
COLUMNS = 8 + 3 + 6 + 7 + 13  # uniform numbers that one image takes
NOISE = 1 << 18  # places in the shared noise where an image may start

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far the changes go; see `Augmentation`."""

    rotate: Degrees
    shift_x: Fraction
    shift_y: Fraction
    zoom: BelowOne
    shear: Degrees
    flip_horizontal: Fraction
    flip_vertical: Fraction
    brightness: Fraction
    contrast: Fraction
    gamma: NonNegative
    equalise: Fraction
    sharpen: Fraction
    shrink: Fraction
    blur: Fraction
    noise: Fraction
    compress: Fraction
    erase: Fraction

    @property
    def moves(self) -> bool:
        """Whether pixels change their place."""
        flips = (self.flip_horizontal, self.flip_vertical)
        return any((self.rotate, self.shift_x, self.shift_y, self.zoom, self.shear, *flips))

    @property
    def grays(self) -> bool:
        """Whether gray levels are mapped to others."""
        return any((self.brightness, self.contrast, self.gamma))


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The changes of B images; the first dimension of each array is B.

    `matrix` (B, 2, 3) maps old to new pixel coordinates (x, y); `table` (B, 256) uint8 maps gray levels; 0 means that
    this one is left out in `clip_limit` (of CLAHE), `sharpness`, `shrunk` (a fraction of the side), `blur` (a standard
    deviation in pixels), `noise` (one in gray levels) and `quality` (of JPEG); `noise_from` is where the image starts
    in the shared noise; `boxes` (B, 3, 4) are top, bottom, left, right in pixels, empty where there is none.
    """

    matrix: Floats | None
    table: npt.NDArray[np.uint8] | None
    clip_limit: Floats
    sharpness: Floats
    shrunk: Floats
    blur: Floats
    noise: Floats
    noise_from: npt.NDArray[np.int64]
    quality: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.int64]


def uniform(*, seed: int, epoch: int, records: Iterable[int], columns: int) -> Floats:
    """Draw numbers in [0, 1) by jumping into SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).

    Returns:
        (columns, B).
    """
    key = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    rows = np.fromiter(records, np.uint64)
    places = rows * np.uint64(columns) + np.arange(columns, dtype=np.uint64)[:, None]
    state = key + np.uint64(0x9E3779B97F4A7C15) * places
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    numbers: Floats = ((state ^ (state >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
    return numbers


def shared_noise(pixels: int) -> npt.NDArray[np.float32]:
    """Give the standard normal numbers, (NOISE + pixels,), of which images of so many pixels add parts."""
    return np.random.default_rng(0).standard_normal(NOISE + pixels, np.float32)


def draw(limits: Limits, *, side: int, seed: int, epoch: int, records: Iterable[int]) -> Changes:
    """Draw the changes of square images of `side` pixels."""
    numbers = uniform(seed=seed, epoch=epoch, records=records, columns=COLUMNS)
    moves, grays, chances, strengths, boxes = np.split(numbers, np.cumsum([8, 3, 6, 7]))
    happens = [limits.equalise, limits.sharpen, limits.shrink, limits.blur, limits.compress, limits.erase]
    equalised, sharpened, shrunk, blurred, compressed, erased = chances < np.array(happens)[:, None]
    return Changes(
        matrix=_matrix(limits, moves, side=side) if limits.moves else None,
        table=_table(limits, grays) if limits.grays else None,
        clip_limit=equalised * _between(strengths[0], *CLIP_LIMIT),
        sharpness=sharpened * _between(strengths[1], *SHARPNESS),
        shrunk=shrunk * _between(strengths[2], *SHRUNK),
        blur=blurred * _between(strengths[3], *BLUR),
        noise=strengths[4] * 255 * limits.noise,
        noise_from=(strengths[5] * NOISE).astype(np.int64),
        quality=compressed * _between(strengths[6], QUALITY[0], QUALITY[1] + 1).astype(np.int64),
        boxes=_boxes(boxes, erased, side=side),
    )


def _between(number: Floats, low: float, high: float) -> Floats:
    return low + (high - low) * number


def _matrix(limits: Limits, numbers: Floats, *, side: int) -> Floats:
    """Flip, scale, rotate, shear and shift about the centre, in this order; (B, 2, 3)."""
    flip_x, flip_y = numbers[0] < limits.flip_horizontal, numbers[1] < limits.flip_vertical
    signed = 2 * numbers[2:] - 1
    scale_x, scale_y = 1 + limits.zoom * signed[0], 1 + limits.zoom * signed[1]
    angle = np.deg2rad(limits.rotate * signed[2])
    lean = np.tan(np.deg2rad(limits.shear * signed[3]))
    shift_x, shift_y = np.trunc(limits.shift_x * signed[4] * side), np.trunc(limits.shift_y * signed[5] * side)
    cosine, sine = np.cos(angle), np.sin(angle)
    scale_x, scale_y = np.where(flip_x, -scale_x, scale_x), np.where(flip_y, -scale_y, scale_y)
    a, b = (cosine - lean * sine) * scale_x, (sine + lean * cosine) * scale_y
    c, d = -sine * scale_x, cosine * scale_y
    centre = side / 2 - 0.5
    rows = [[a, b, shift_x + centre * (1 - a - b)], [c, d, shift_y + centre * (1 - c - d)]]
    return np.moveaxis(np.array(rows), -1, 0)


def _table(limits: Limits, numbers: Floats) -> npt.NDArray[np.uint8]:
    """Contrast and brightness, rounded down to gray levels, then gamma; (B, 256)."""
    signed = 2 * numbers[:, :, None] - 1
    lines = np.arange(256) * (1 + limits.contrast * signed[1]) + 255 * limits.brightness * signed[0]
    lines = np.clip(lines, 0, 255).astype(np.uint8)
    low, high = 1 / (1 + limits.gamma), 1 + limits.gamma
    curves = ((np.arange(256) / 255) ** _between(numbers[2][:, None], low, high) * 255).astype(np.uint8)
    return np.take_along_axis(curves, lines.astype(np.intp), axis=1)


def _boxes(numbers: Floats, erased: npt.NDArray[np.bool_], *, side: int) -> npt.NDArray[np.int64]:
    """Place one to three boxes, empty ones where there are fewer; (B, BOXES, 4)."""
    count, (height, width, top, left) = numbers[0], numbers[1:].reshape(4, BOXES, -1)
    there = erased & (np.arange(BOXES)[:, None] <= np.floor(count * BOXES))
    height, width = ((side * _between(each, *BOX)).astype(np.int64) * there for each in (height, width))
    top, left = (top * (side - height + 1)).astype(np.int64), (left * (side - width + 1)).astype(np.int64)
    return np.moveaxis(np.stack([top, top + height, left, left + width]), (0, 1, 2), (2, 1, 0))
