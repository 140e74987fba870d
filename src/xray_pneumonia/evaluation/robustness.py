"""Measures robustness: assesses the same images under fixed, seeded corruptions of five strengths each.

The corruptions imitate how another machine, technician or file format would have shown the patient.
"""

from collections.abc import Callable
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageFilter
from scipy.ndimage import shift

from xray_pneumonia.evaluation.abstention import answered_and_wrong
from xray_pneumonia.evaluation.assessment import Decision
from xray_pneumonia.evaluation.intervals import delong
from xray_pneumonia.evaluation.metrics import table_metrics
from xray_pneumonia.types import Gray, Vector

CLEAN = "as it is"
SHOWN = ("sensitivity", "specificity", "balanced_accuracy")
STRENGTHS = (1, 2, 3, 4, 5)


def corrupt(images: Gray, *, kind: str, strength: int, seed: int) -> Gray:
    """Corrupt (N, H, W) images; an image is changed alike whatever the others are.

    `seed` is that of noise, and of the side to which an image is turned, moved or exposed.
    """
    amount = KINDS[kind][0][strength - 1]
    act = KINDS[kind][1]
    made = [act(one, amount, np.random.default_rng([seed, place])) for place, one in enumerate(images)]
    return np.stack(made) if made else images.copy()


def robustness(
    table: pd.DataFrame, images: Gray, decision: Decision, *, predict: Callable[[Gray], Vector], seed: int
) -> pd.DataFrame:
    """Assess images (N, H, W) under every corruption at every strength; nothing is fitted anew.

    Args:
        table: predictions of the images.
        images: uint8.
        decision: chosen on validation.
        predict: (N, H, W) -> raw logits (N,).
        seed: of the corruptions.

    Returns:
        One row for each kind and strength: `auroc` with DeLong's interval by patient (`low`, `high`), the metrics of
        `SHOWN`, the share of images that is `answered` and the `answered_error` among those; the first row is the
        images as they are.
    """
    rows = [_row(CLEAN, 0, table, decision)]
    for kind in KINDS:
        for strength in STRENGTHS:
            logits = predict(corrupt(images, kind=kind, strength=strength, seed=seed))
            rows.append(_row(kind, strength, table.assign(logit=logits), decision))
    return pd.DataFrame(rows)


def sample(table: pd.DataFrame, *, images: int | None, seed: int) -> npt.NDArray[np.int64]:
    """Choose about so many rows, half of each class where that is possible, in their order; None takes all."""
    if images is None or images >= len(table):
        return np.arange(len(table))
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(table["label"] == label) for label in (0, 1)]
    return np.sort(np.concatenate([rng.permutation(part)[: max(2, images // 2)] for part in rows]))


def _row(kind: str, strength: int, table: pd.DataFrame, decision: Decision) -> dict[str, object]:
    calibrated = decision.calibration.apply(table)
    values = table_metrics(calibrated, threshold=decision.threshold)
    area = delong(calibrated["label"], calibrated["logit"], calibrated["patient"])
    answered, wrong = answered_and_wrong(calibrated, decision.band)
    numbers = {"auroc": area.value, "low": area.low, "high": area.high, **{name: values[name] for name in SHOWN}}
    return {"kind": kind, "strength": strength, **numbers, "answered": answered, "answered_error": wrong}


def _jpeg(image: Gray, amount: float, _: np.random.Generator) -> Gray:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(amount))
    return np.asarray(Image.open(buffer), np.uint8)


def _shrink(image: Gray, amount: float, _: np.random.Generator) -> Gray:
    side = max(8, round(len(image) * amount))
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small.resize(image.shape[::-1], Image.Resampling.BILINEAR), np.uint8)


def _rotate(image: Gray, amount: float, rng: np.random.Generator) -> Gray:
    turned = Image.fromarray(image).rotate(
        amount * float(rng.choice([-1, 1])), Image.Resampling.BILINEAR, fillcolor=int(np.median(image[0]))
    )
    return np.asarray(turned, np.uint8)


def _shift(image: Gray, amount: float, rng: np.random.Generator) -> Gray:
    angle = rng.uniform(0, 2 * np.pi)
    step = amount * len(image) * np.array([np.sin(angle), np.cos(angle)])
    return _clipped(shift(image.astype(np.float64), step, order=1, mode="nearest"))


def _narrower(image: Gray, amount: float, _: np.random.Generator) -> Gray:
    """Cut off top and bottom and squash the rest into the square: the chest looks narrower."""
    edge = len(image) * (1 - amount) / 2
    box = (0.0, edge, float(image.shape[1]), len(image) - edge)
    return np.asarray(Image.fromarray(image).resize(image.shape[::-1], Image.Resampling.BILINEAR, box), np.uint8)


def _filtered(image: Gray, act: ImageFilter.Filter) -> Gray:
    return np.asarray(Image.fromarray(image).filter(act), np.uint8)


def _clipped(values: npt.NDArray[np.floating] | Vector) -> Gray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


# Kind -> amounts of the five strengths, and (image, amount, generator) -> image.
KINDS: dict[str, tuple[tuple[float, ...], Callable[[Gray, float, np.random.Generator], Gray]]] = {
    "noise": (  # standard deviation, of the full range
        (0.02, 0.04, 0.08, 0.12, 0.18),
        lambda image, amount, rng: _clipped(image + rng.normal(0, amount * 255, image.shape)),
    ),
    "blur": (  # radius in pixels at 128 x 128
        (0.5, 1.0, 1.5, 2.0, 3.0),
        lambda image, amount, _: _filtered(image, ImageFilter.GaussianBlur(amount * len(image) / 128)),
    ),
    "contrast": (  # share that is lost
        (0.15, 0.3, 0.45, 0.6, 0.75),
        lambda image, amount, _: _clipped((image - image.mean()) * (1 - amount) + image.mean()),
    ),
    "brightness": (  # of the full range, up or down
        (0.04, 0.08, 0.13, 0.19, 0.26),
        lambda image, amount, rng: _clipped(image + amount * 255 * rng.choice([-1, 1])),
    ),
    "gamma": (  # exponent, or one over it
        (1.1, 1.25, 1.45, 1.7, 2.0),
        lambda image, amount, rng: _clipped(255 * (image / 255) ** (amount ** rng.choice([-1, 1]))),
    ),
    "jpeg": ((60, 35, 20, 12, 6), _jpeg),  # quality
    "down-scaling": ((0.75, 0.5, 0.38, 0.28, 0.2), _shrink),  # of the side, and back
    "sharpening": (  # percent, of an unsharp mask of two pixels at 128 x 128
        (30, 60, 100, 150, 220),
        lambda image, amount, _: _filtered(image, ImageFilter.UnsharpMask(2 * len(image) / 128, int(amount), 0)),
    ),
    "narrower": ((0.95, 0.9, 0.84, 0.78, 0.7), _narrower),  # of the height that stays: another aspect ratio
    "wider": (  # of the width that stays
        (0.95, 0.9, 0.84, 0.78, 0.7),
        lambda image, amount, rng: np.ascontiguousarray(_narrower(np.ascontiguousarray(image.T), amount, rng).T),
    ),
    "rotation": ((3, 6, 10, 15, 25), _rotate),  # degrees, to either side
    "shift": ((0.02, 0.05, 0.08, 0.12, 0.18), _shift),  # of the side, in any direction
}
