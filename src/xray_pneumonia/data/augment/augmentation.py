"""Augment batches of training images; `transforms` defines the single transforms.

What happens to an image is a pure function of (seed, epoch, record), so it is the same for any number of workers, any
batch size and after a resume. OpenCV makes the changes from numbers drawn for the whole batch, several times faster
than albumentations, which remains as the reference that every transform is tested against.
"""

import copy
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import fields
from inspect import Parameter, Signature, signature
from typing import Any, Literal

import numpy as np

from xray_pneumonia.data.augment.parameters import Transform
from xray_pneumonia.data.augment.transforms import TRANSFORMS
from xray_pneumonia.errors import InputError
from xray_pneumonia.types import Gray

STREAM = zlib.crc32(b"transforms")  # of the listed transforms: other numbers than those of the transforms before


class Augmentation:
    """Random changes to gray images; every value 0 means: leave the images as they are.

    Its keyword-only parameters, all required, are the fields of all `TRANSFORMS`, with their ranges, and:

    Args:
        transforms: come after them: albumentations', or functions of an image (H, W) and a NumPy generator.
        engine: `opencv`, or the slower `albumentations`: the same distributions, but other draws.
        device: where images are augmented: `cpu`; `auto`, of configs stored by version 0.1.0, means the same.
    """

    def __init__(
        self,
        *,
        transforms: list[Any],
        engine: Literal["opencv", "albumentations"],
        device: Literal["auto", "cpu", "net"],
        **keys: Any,
    ) -> None:
        if device == "net":
            raise InputError(
                "augmentation.device=net: images are no longer augmented on the model's device, which was never "
                "measured to be faster; use augmentation.device=cpu: a thread prepares batches while the model trains"
            )
        signature(Augmentation).bind(transforms=transforms, engine=engine, device=device, **keys)
        known = [kind(**{field.name: keys[field.name] for field in fields(kind)}) for kind in TRANSFORMS]
        self._transforms = [transform for transform in known if transform.active]
        self._more = Transforms(transforms)
        self.active = bool(self._transforms or transforms)
        self._pipeline = _compose(self._transforms) if self._transforms and engine == "albumentations" else None

    def __call__(self, images: Gray, *, seed: int, epoch: int, records: Iterable[int]) -> Gray:
        """Augment a batch.

        Args:
            images: (B, H, W) uint8, square.
            seed: of the run.
            epoch: counted from 0.
            records: B row numbers in the table of records.

        Returns:
            (B, H, W) uint8, a new array where anything can change.
        """
        if not self.active:
            return images
        changed, rows = images.copy(), np.fromiter(records, np.uint64)
        if self._pipeline is not None:
            changed = _by_albumentations(self._pipeline, changed, entropy=[seed, epoch], records=rows)
            return self._more(changed, entropy=[seed, epoch], records=rows)
        for transform in self._transforms:
            numbers = transform.stream.draw(rows, seed=seed, epoch=epoch)
            chosen, parameters = transform.draw(numbers, side=images.shape[1])
            for row in np.flatnonzero(chosen):
                changed[row] = transform.apply(changed[row], parameters[row])
        return self._more(changed, entropy=[seed, epoch], records=rows)

    def require_sides(self, sides: Iterable[int]) -> None:
        """Check that images of these sizes keep their shape and type; else an InputError says what does not."""
        for side in sides:
            self._more.require_side(side)


def _by_albumentations(pipeline: Any, images: Gray, *, entropy: list[int], records: Iterable[int]) -> Gray:
    for row, record in enumerate(records):
        # One seed for the whole pipeline would start every transform at the same numbers: the brightest images
        # would always be those turned furthest to the right.
        states = np.random.SeedSequence([*entropy, int(record)]).generate_state(len(pipeline.transforms))
        for transform, state in zip(pipeline.transforms, states, strict=True):
            transform.set_random_seed(int(state))
        images[row] = pipeline(image=images[row])["image"]
    return images


def _compose(transforms: Iterable[Transform]) -> Any:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else its import asks a server for the newest version
    import albumentations as alb  # two seconds to import

    return alb.Compose([step for transform in transforms for step in transform.reference(alb)])


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


# `config.check` reads keys, types and ranges from signatures: this one lists the fields of all transforms.
_KEYS = {field.name: field.type for kind in TRANSFORMS for field in fields(kind)}
Augmentation.__init__.__annotations__.update(_KEYS)
_OWN = [own for own in signature(Augmentation).parameters.values() if own.kind is Parameter.KEYWORD_ONLY]
Augmentation.__signature__ = Signature(  # type: ignore[attr-defined]
    [*(Parameter(name, Parameter.KEYWORD_ONLY, annotation=hint) for name, hint in _KEYS.items()), *_OWN]
)
