"""Tests two models on the same images: paired differences, resampled by patient."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.intervals import Estimate, delong_difference, interval, patient_weights
from xray_pneumonia.evaluation.metrics import METRICS, WeightedMetrics
from xray_pneumonia.types import Vector


@dataclass(frozen=True)
class Difference:
    """One metric of both models: `gap` is first - second, and the p-value of "no difference"."""

    name: str
    first: float
    second: float
    gap: Estimate
    p_value: float
    test: str


def compare(
    first: pd.DataFrame, second: pd.DataFrame, *, thresholds: tuple[float, float], replicates: int, seed: int
) -> list[Difference]:
    """Compare two tables of predictions metric by metric on the same resampled patients.

    AUROC is tested with DeLong's paired test on clustered data, all else with the bootstrap.

    Raises:
        InputError: the tables are not about the same images.
    """
    if set(first["id"]) != set(second["id"]) or len(first) != len(second):
        raise InputError("compare_to: the two models were not run on the same images")
    second = second.set_index("id").loc[first["id"]].reset_index()
    models = [
        WeightedMetrics.of(table, threshold=point) for table, point in zip((first, second), thresholds, strict=True)
    ]
    weights = patient_weights(models[0].patients, replicates=replicates, seed=seed, images=len(first))
    blocks = [[model(block) for model in models] for block in weights]
    once = [model.once() for model in models]
    differences = []
    for name in METRICS:
        mine, other = (values[name] for values in once)
        samples = np.concatenate([one[name] - two[name] for one, two in blocks])
        gap, p_value, test = interval(mine - other, samples), _p_value(mine - other, samples), "bootstrap"
        if name == "auroc":
            gap, p_value = delong_difference(first["label"], first["logit"], second["logit"], first["patient"])
            test = "DeLong"
        differences.append(Difference(name, mine, other, gap, p_value, test))
    return differences


def _p_value(gap: float, samples: Vector) -> float:
    """Double the share of replicates on the far side of no difference, ties counted half."""
    known = samples[np.isfinite(samples)]
    if np.isnan(gap) or not len(known):
        return np.nan
    below, equal = int((known < 0).sum()), int((known == 0).sum())
    tail = (min(below, len(known) - below - equal) + equal / 2 + 1) / (len(known) + 1)
    return float(min(1.0, 2 * tail))
