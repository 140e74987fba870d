"""Computes `robust/score`, an objective of sweeps, on films as they are, corrupted, and unlike those that trained.

Each of these parts has two measures. The score is the mean over the parts of how much better than a reference training
they are, in standard deviations of the reference over seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from xray_pneumonia.evaluation.metrics import table_metrics
from xray_pneumonia.types import Gray, Vector

if TYPE_CHECKING:
    from xray_pneumonia.evaluation.assessment import Decision

PREFIX = "robust/"
SCORE = "robust/score"
PLAIN = "plain"
MEASURES = {"log_loss": -1, "balanced_accuracy": 1}  # whether less or more of it is better
# Part -> the corruptions, with their strengths, of each of its copies of the films; those of one copy act in turn.
CORRUPTED = {
    "shape": [[("narrower", 4)], [("wider", 4)]],
    "crop": [[("narrower", 4), ("wider", 4)], [("shift", 4)]],
    "exposure": [[("gamma", 4)], [("brightness", 4)], [("contrast", 4)]],
    "sharpness": [[("blur", 4)], [("sharpening", 4)]],
    "jpeg": [[("jpeg", 4)]],
}
Scales = Mapping[str, Mapping[str, Sequence[float]]]  # part -> measure -> mean and standard deviation of the reference


def measure(part: str, table: pd.DataFrame, decision: "Decision") -> dict[str, float]:
    """Measure raw predictions of a part: `robust/PART/MEASURE` -> value.

    The log loss is the mean of both classes', of probabilities where half are ill; the balanced accuracy is that at the
    operating point.
    """
    evidence = decision.calibration.evidence(table["logit"])
    losses = pd.Series(np.logaddexp(0, np.where(table["label"] == 1, -evidence, evidence)))
    metrics = table_metrics(decision.calibration.apply(table), threshold=decision.threshold)
    values = {
        "log_loss": float(losses.groupby(table["label"].to_numpy()).mean().mean()),
        "balanced_accuracy": metrics["balanced_accuracy"],
    }
    return {f"{PREFIX}{part}/{name}": value for name, value in values.items()}


def measure_validation(
    table: pd.DataFrame, images: Gray, decision: "Decision", *, predict: Callable[[Gray], Vector], seed: int
) -> dict[str, float]:
    """Measure validation images (N, H, W) as they are and corrupted.

    Args:
        table: raw predictions of the images.
        images: uint8.
        decision: chosen on them as they are.
        predict: (N, H, W) -> raw logits (N,).
        seed: of the corruptions.
    """
    from xray_pneumonia.evaluation.robustness import corrupt  # not needed to check a sweep's settings

    values = measure(PLAIN, table, decision)
    for part, copies in CORRUPTED.items():
        tables = []
        for corruptions in copies:
            films = images
            for kind, strength in corruptions:
                films = corrupt(films, kind=kind, strength=strength, seed=seed)
            tables.append(table.assign(logit=predict(films)))
        values |= measure(part, pd.concat(tables), decision)
    return values


def pool(trainings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average each measure over the trainings that have it."""
    names = dict.fromkeys(name for one in trainings for name in one)
    return {name: fmean(one[name] for one in trainings if name in one) for name in names}


def standardise(values: Mapping[str, float], scales: Scales) -> dict[str, float]:
    """Return of each part how much better than the reference it is, in standard deviations over seeds."""
    parts = [part for part in scales if f"{PREFIX}{part}/log_loss" in values]
    return {
        part: fmean(
            sign * (values[f"{PREFIX}{part}/{name}"] - scales[part][name][0]) / scales[part][name][1]
            for name, sign in MEASURES.items()
        )
        for part in parts
    }


def score(values: Mapping[str, float], scales: Scales) -> float:
    """Average over the parts that were measured; NaN where there is none."""
    return fmean(standardise(values, scales).values()) if values else float("nan")


def word(values: Mapping[str, float], scales: Scales) -> list[str]:
    """Word the score: how many of the known parts it rests on, and a line for each of them."""
    parts = standardise(values, scales)
    lines = [f"robust/score {score(values, scales):+.2f}, the mean of {len(parts)} of {len(scales)} parts:"]
    for part, value in parts.items():
        loss, accuracy = (values[f"{PREFIX}{part}/{name}"] for name in MEASURES)
        lines.append(f"  {part:<14} {value:+8.2f}   log loss {loss:.4f}, balanced accuracy {accuracy:.4f}")
    return lines
