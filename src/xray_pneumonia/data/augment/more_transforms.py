"""Apply the transforms that a config lists: albumentations', or functions of the user's own; seeded like the others."""

import copy
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from xray_pneumonia.errors import InputError
from xray_pneumonia.types import Gray

STREAM = zlib.crc32(b"transforms")  # other numbers than those of the transforms before


class Transforms:
    """Changes images by each transform in turn; what it draws is a function of (seed, epoch, record) alone.

    Args:
        transforms: objects of albumentations, or callables (image (H, W) uint8, generator) -> image.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        self._transforms = transforms

    def __call__(self, images: Gray, *, entropy: Sequence[int], records: Iterable[int]) -> Gray:
        """Change images (B, H, W) uint8 in place, and return them; `entropy` is seed and epoch, `records` are rows."""
        for row, record in enumerate(records if self._transforms else ()):
            states = np.random.SeedSequence([*entropy, int(record), STREAM]).generate_state(len(self._transforms))
            image: Any = images[row]
            for transform, state in zip(self._transforms, states, strict=True):
                image = _applied(transform, image, int(state))
            images[row] = image
        return images

    def require_side(self, side: int) -> None:
        """Check that square images of so many pixels keep their shape and type.

        Raises:
            InputError: a transform fails, or the last one gives another shape or type.
        """
        if not self._transforms:
            return
        image: Any = np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
        for position, transform in enumerate(self._transforms):
            certain = copy.copy(transform)
            if hasattr(certain, "set_random_seed"):
                certain.p = 1.0
            try:
                image = _applied(certain, image, 0)
            except Exception as error:  # whatever its code raises
                name = getattr(transform, "func", type(transform)).__name__
                reason = " ".join(str(error).split())[:200]
                raise InputError(
                    f"augmentation.transforms.{position}: {name} cannot change a gray image: {reason}"
                ) from error
        if getattr(image, "shape", None) != (side, side) or image.dtype != np.uint8:
            what = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}"
            raise InputError(f"augmentation.transforms: give {what} for uint8 {(side, side)}; they should keep both")


def _applied(transform: Any, image: Gray, state: int) -> Any:
    if not hasattr(transform, "set_random_seed"):
        return transform(image, np.random.default_rng(state))
    _seed(transform, np.random.SeedSequence(state))
    return transform(image=image)["image"]


def _seed(transform: Any, sequence: np.random.SeedSequence) -> None:
    """Seed a transform; those within it get seeds of their own, since equal ones would draw the same numbers."""
    transform.set_random_seed(int(sequence.generate_state(1)[0]))
    inner = getattr(transform, "transforms", [])
    for each, part in zip(inner, sequence.spawn(len(inner)), strict=True):
        _seed(each, part)
