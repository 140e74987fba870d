"""Calibration: make a probability of 0.8 mean that 8 of 10 are ill; fitted on validation alone."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit

from xray_pneumonia.evaluation.intervals import wilson
from xray_pneumonia.evaluation.metrics import BINS, Vector

Method = Literal["temperature", "platt", "none"]
COLDEST, HOTTEST = 0.05, 20.0


@dataclass(frozen=True)
class Calibration:
    """calibrated logit = logit / temperature + bias."""

    temperature: float = 1.0
    bias: float = 0.0

    def logits(self, logit: npt.ArrayLike) -> Vector:
        """Calibrate logits (N,)."""
        return np.asarray(logit, np.float64) / self.temperature + self.bias

    def apply(self, table: pd.DataFrame) -> pd.DataFrame:
        """Give the table with calibrated probabilities; its logits stay the net's own."""
        return table.assign(probability=expit(self.logits(table["logit"])))


def fit(logit: npt.ArrayLike, label: npt.ArrayLike, *, method: Method) -> Calibration:
    """Fit a calibration by the least log loss.

    `temperature` is that of Guo et al. (ICML 2017). `platt` adds a bias and aims at his smoothed targets
    (Platt, 1999), without which separable classes would have no answer.

    Args:
        logit: (N,) of validation.
        label: (N,) of 0 and 1.
        method: which of them.
    """
    scores, truth = np.asarray(logit, np.float64), np.asarray(label, np.float64)
    if method == "none":
        return Calibration()
    if method == "temperature":
        bounds = (np.log(COLDEST), np.log(HOTTEST))
        found = minimize_scalar(lambda t: _loss(scores / np.exp(t), truth), bounds=bounds, method="bounded")
        return Calibration(float(np.exp(found.x)))
    ill, well = truth.sum(), (1 - truth).sum()
    target = np.where(truth == 1, (ill + 1) / (ill + 2), 1 / (well + 2))
    found = minimize(lambda w: _loss(np.exp(w[0]) * scores + w[1], target), np.zeros(2), method="BFGS")
    slope = float(np.clip(np.exp(found.x[0]), 1 / HOTTEST, 1 / COLDEST))
    return Calibration(1 / slope, float(found.x[1]))


def reliability(table: pd.DataFrame) -> pd.DataFrame:
    """Compare what was said with what was true, in bins of equal width.

    Returns:
        One row for each bin that holds images: `said` and `true` (means), `low`, `high` (Wilson's interval
        of `true`, at the number of patients or images, whichever is fewer), `images`, `patients`.
    """
    bins = np.minimum((table["probability"] * BINS).astype(int), BINS - 1)
    rows = []
    for _, part in table.groupby(bins):
        true, patients = float(part["label"].mean()), int(part["patient"].nunique())
        low, high = wilson(true * patients, patients)
        rows.append((float(part["probability"].mean()), true, low, high, len(part), patients))
    return pd.DataFrame(rows, columns=["said", "true", "low", "high", "images", "patients"])


def _loss(logit: Vector, target: Vector) -> float:
    return float(np.mean(np.logaddexp(0, logit) - target * logit))
