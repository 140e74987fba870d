"""Two models on the same images: paired differences, by patient."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.intervals import Estimate, delong_difference, interval, patient_weights
from xray_pneumonia.evaluation.metrics import METRICS, Vector, WeightedMetrics


@dataclass(frozen=True)
class Difference:
    """One metric of both models, first - second, and the p-value of "no difference"."""

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
    samples: dict[str, list[Vector]] = {name: [] for name in METRICS}
    for weights in patient_weights(models[0].patients, replicates=replicates, seed=seed, images=len(first)):
        mine, other = (model(weights) for model in models)
        for name in METRICS:
            samples[name].append(mine[name] - other[name])
    mine_once, other_once = (model.once() for model in models)
    differences = []
    for name in METRICS:
        values = np.concatenate(samples[name])
        gap = interval(mine_once[name] - other_once[name], values)
        differences.append(
            Difference(name, mine_once[name], other_once[name], gap, _p_value(gap.value, values), "bootstrap")
        )
    return [_with_delong(one, first, second) if one.name == "auroc" else one for one in differences]


def _with_delong(difference: Difference, first: pd.DataFrame, second: pd.DataFrame) -> Difference:
    gap, p_value = delong_difference(first["label"], first["logit"], second["logit"], first["patient"])
    return Difference("auroc", difference.first, difference.second, gap, p_value, "DeLong")


def _p_value(gap: float, samples: Vector) -> float:
    """Double the share of replicates on the far side of no difference, ties counted half."""
    known = samples[np.isfinite(samples)]
    if np.isnan(gap) or not len(known):
        return np.nan
    below, equal = int((known < 0).sum()), int((known == 0).sum())
    tail = (min(below, len(known) - below - equal) + equal / 2 + 1) / (len(known) + 1)
    return float(min(1.0, 2 * tail))
