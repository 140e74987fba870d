"""Quality flags: what a reader of an answer should know of the film it is about."""

import numpy as np
import numpy.typing as npt

from xray_pneumonia.evaluation.input_gate import Gate
from xray_pneumonia.evaluation.metrics import Vector

Gray = npt.NDArray[np.uint8]
MEANINGS = {
    "outside_training_range": "looks like none of the frontal chest films the model learned from",
    "inverted": "looks like one once black and white are exchanged",
    "turned": "looks like one once it is turned",
    "low_information": "holds little contrast",
    "not_checked": "the model carries no input gate",
}
LEAST_CONTRAST = 12.0  # gray levels of standard deviation; the public films have 25 and more
LEAST_SHADES = 24  # different gray levels


def flag(images: Gray, strangeness: Vector, gate: Gate | None) -> list[list[str]]:
    """Flag images.

    Args:
        images: (N, H, W).
        strangeness: (N,) scores of the gate; NaN without one.
        gate: the model's.

    Returns:
        For each image the names of `MEANINGS` that hold.
    """
    flags = [_contrast(image) for image in images]
    if gate is None:
        return [[*found, "not_checked"] for found in flags]
    for place in np.flatnonzero(strangeness > 1):
        flags[place] += ["outside_training_range", *_righted(images[place], gate)]
    return flags


def _righted(image: Gray, gate: Gate) -> list[str]:
    """Say what would make a strange image familiar."""
    turned = [np.ascontiguousarray(np.rot90(image, turns)) for turns in (1, 2, 3)]
    negative, *others = gate.scores(np.stack([255 - image, *turned])) <= 1
    return ["inverted"] * bool(negative) + ["turned"] * any(others)


def _contrast(image: Gray) -> list[str]:
    low = float(image.std()) < LEAST_CONTRAST or len(np.unique(image)) < LEAST_SHADES
    return ["low_information"] if low else []
