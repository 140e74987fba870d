"""Draw the random parameters of transforms: a pure function of (seed, epoch, record).

The numbers of a batch are drawn together: a generator for each image costs more than changing its pixels.
"""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from xray_pneumonia.types import Gray, Vector

SHARED = 37  # uniform numbers of the first stream for one image; another count would change every draw
STARTS = 1 << 18  # positions in the shared noise where an image may start

Chosen = npt.NDArray[np.bool_]  # (B,): which images a transform changes
Numbers = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Which uniform numbers in [0, 1) a transform takes."""

    columns: Sequence[int]  # their positions among the numbers of one image
    count: int  # how many numbers of the stream belong to one image
    name: str  # of the stream; empty for the first one

    def draw(self, records: npt.NDArray[np.uint64], *, seed: int, epoch: int) -> Vector:
        """Draw the numbers of records (B,) by jumping into SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).

        Returns:
            (len(columns), B).
        """
        entropy = [seed, epoch, zlib.crc32(self.name.encode())] if self.name else [seed, epoch]
        key = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
        places = records * np.uint64(self.count) + np.asarray(self.columns, np.uint64)[:, None]
        state = key + np.uint64(0x9E3779B97F4A7C15) * places
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        numbers: Vector = ((state ^ (state >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
        return numbers


def shared(*columns: int) -> Stream:
    """Take numbers of the first stream; its columns are all taken, and shipped models reproduce by them."""
    return Stream(columns=columns, count=SHARED, name="")


def own(name: str, count: int) -> Stream:
    """Take so many numbers of a stream of this name: a new transform leaves the draws of the others as they are."""
    return Stream(columns=range(count), count=count, name=name)


@lru_cache(maxsize=4)  # one for each image size of a progressive training
def shared_noise(pixels: int) -> npt.NDArray[np.float32]:
    """Draw the standard normal numbers (STARTS + pixels,) of which an image of so many pixels adds a part."""
    return np.random.default_rng(0).standard_normal(STARTS + pixels, np.float32)


@dataclass(frozen=True, kw_only=True)
class Transform(ABC):
    """One random change of gray images; its fields are keys of the config, and 0 turns each of them off.

    Attributes:
        stream: the uniform numbers that it takes.
        limits: of the parameter, where there is one and the only key is the probability of a change.
    """

    stream: ClassVar[Stream]
    limits: ClassVar[tuple[float, float]]

    @property
    def active(self) -> bool:
        """Whether any key is on; a text, such as that of the border, only says how."""
        return any(value for value in vars(self).values() if not isinstance(value, str))

    def draw(self, numbers: Vector, *, side: int) -> tuple[Chosen, Numbers]:
        """Turn uniform numbers (C, B) into parameters for square images of `side` pixels.

        Returns:
            (B,) which images are changed, and (B, ...) the parameters of each.
        """
        [probability] = vars(self).values()
        return numbers[0] < probability, between(numbers[1], self.limits)

    @abstractmethod
    def apply(self, image: Gray, parameters: Any) -> Any:
        """Change one image (H, W) uint8 with OpenCV; it may be changed in place."""

    @abstractmethod
    def reference(self, alb: Any) -> Iterator[Any]:
        """Yield the transforms of albumentations (`alb`) with the same distribution."""


def between(numbers: Vector, limits: tuple[float, float]) -> Vector:
    """Spread numbers in [0, 1) over the range between two limits."""
    low, high = limits
    return low + (high - low) * numbers
