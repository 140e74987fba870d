"""Corrects the figure of the best of several configs for having been chosen, by a bootstrap of patients."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from xray_pneumonia.evaluation.intervals import FEWEST_RESAMPLED, patient_weights
from xray_pneumonia.evaluation.metrics import METRICS, WeightedMetrics
from xray_pneumonia.types import Vector

REPLICATES = 500
MOST = 50_000  # replicates times runs


@dataclass(frozen=True)
class Evaluated:
    """The predictions of a run on validation, with the threshold from which they are called PNEUMONIA."""

    table: pd.DataFrame
    threshold: float


@dataclass(frozen=True)
class Selection:
    """The best of `configs` by one metric: its value, and the value corrected for the choice; NaN with the reason."""

    configs: int
    value: float
    corrected: float
    images: int = 0
    patients: int = 0
    reason: str = ""

    def __str__(self) -> str:
        """Word it, with what it rests on."""
        best = f"best of {self.configs} says {self.value:.4f}"
        if np.isnan(self.corrected):
            return f"{best}, flattered by the choice ({self.reason})"
        return f"{best}, corrected {self.corrected:.4f} (on {self.images} images of {self.patients} patients)"


def correct_for_choice(configs: Sequence[Sequence[Evaluated]], *, name: str, seed: int) -> Selection:
    """Correct the best value of a metric: each time the best config is chosen in the bag and assessed outside of it.

    That is the bootstrap bias corrected cross-validation of Tsamardinos et al. (Machine Learning 2018). The value of a
    config is the mean over its runs, so the areas of folds are averaged and not pooled (Airola et al., CSDA 2011).
    """
    owners, images = ([_union(runs, column) for runs in configs] for column in ("patient", "id"))
    patients, (best, sign) = owners[0], (np.nan, 1 if METRICS[name].direction == "max" else -1)
    pairs = [[_placed(run, patients) for run in runs] for runs in configs]
    whole = [_value(pair, np.ones((1, len(patients))), name)[0] for pair in pairs]
    best = sign * np.nanmax(sign * np.asarray(whole))
    reason = "" if len(patients) >= FEWEST_RESAMPLED else f"fewer than {FEWEST_RESAMPLED} patients"
    if any(one.size != images[0].size or (one != images[0]).any() for one in images):
        reason = "they were validated on different images"
    if reason:
        return Selection(len(configs), float(best), np.nan, reason=reason)
    count = max(100, min(REPLICATES, MOST // sum(map(len, configs))))
    chosen = []
    for weights in patient_weights(len(patients), replicates=count, seed=seed, images=len(images[0])):
        inside, outside = (
            np.stack([_value(pair, side, name) for pair in pairs]) for side in (weights, (weights == 0).astype(float))
        )
        chosen.append(outside[np.nanargmax(sign * inside, axis=0), np.arange(inside.shape[1])])
    # A choice never makes a figure worse: what resampling puts beyond the best value is chance.
    corrected = sign * min(sign * float(np.nanmean(np.concatenate(chosen))), sign * float(best))
    return Selection(len(configs), float(best), corrected, len(images[0]), len(patients))


def _union(runs: Sequence[Evaluated], column: str) -> np.ndarray:
    return np.unique(np.concatenate([run.table[column].to_numpy(str) for run in runs]))


def _placed(run: Evaluated, patients: np.ndarray) -> tuple[WeightedMetrics, np.ndarray]:
    """Find the metrics of a run, and where its patients stand among all."""
    places = np.searchsorted(patients, run.table["patient"].unique().astype(str))
    return WeightedMetrics.of(run.table, threshold=run.threshold), np.minimum(places, len(patients) - 1)


def _value(runs: Sequence[tuple[WeightedMetrics, np.ndarray]], weights: Vector, name: str) -> Vector:
    """Average a metric (B,) over the runs of a config, under (B, P) weights of all patients."""
    values = [metrics(weights[:, places], (name,))[name] for metrics, places in runs]
    return np.asarray(np.mean(values, axis=0), np.float64)
