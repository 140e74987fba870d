"""Flags images of poor quality, and those that the input gate stops: what a reader should know of each."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xray_pneumonia.evaluation.input_gate import STRANGE, UNLIKE, Gate
from xray_pneumonia.types import Gray, Vector

LEAST_CONTRAST = 12.0  # gray levels of standard deviation; the public X-rays have 25 and more
LEAST_SHADES = 24  # different gray levels
FLAGS = {
    "outside_training_range": "looks like none of the frontal chest films the model learned from",
    "inverted": "looks like one once black and white are exchanged",
    "turned": "looks like one once it is turned",
    "low_information": "holds little contrast",
    "not_checked": "the model carries no input gate",
    "torn": "has a line at which its pixels do not continue; the file may be damaged",
    "contradictory_lut": "says in one tag that bright is dense, in another that dark is",
    "mirrored_back": "was stored mirrored, as its PatientOrientation says, and turned back",
    "turned_upright": "was stored turned, as its PatientOrientation says, and turned upright",
}


@dataclass(frozen=True)
class InputCheck:
    """A gate, and the function that computes for it the distances (N,) of images (N, H, W); thumbnails need none."""

    gate: Gate
    distances: Callable[[Gray], Vector] = lambda images: np.zeros(len(images))

    def passes(self, images: Gray) -> npt.NDArray[np.bool_]:
        """Tell which of (N, H, W) images look like the model's X-rays."""
        return self.gate.judge(images, self.distances(images))[0] <= 1


def quality_flags(images: Gray, reasons: Iterable[str], check: InputCheck | None) -> list[list[str]]:
    """List for each of (N, H, W) images the names in `FLAGS` that hold.

    Args:
        images: uint8.
        reasons: why the gate stops each; empty for those that pass.
        check: of the model, if it has a gate.
    """
    flags = [["low_information"] * _low_contrast(image) for image in images]
    if check is None:
        return [[*known, "not_checked"] for known in flags]
    for row, reason in enumerate(reasons):
        if reason in (STRANGE, UNLIKE):
            flags[row].append("outside_training_range")
        if reason == STRANGE:
            flags[row] += _altered(images[row], check)
    return flags


def _altered(image: Gray, check: InputCheck) -> list[str]:
    """Tell whether an image passes once it is inverted or turned."""
    turned = [np.ascontiguousarray(np.rot90(image, turns)) for turns in (1, 2, 3)]
    inverted, *others = check.passes(np.stack([255 - image, *turned]))
    return ["inverted"] * bool(inverted) + ["turned"] * any(others)


def _low_contrast(image: Gray) -> bool:
    return bool(image.std() < LEAST_CONTRAST) or len(np.unique(image)) < LEAST_SHADES
