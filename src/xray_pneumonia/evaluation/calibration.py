"""Calibrates logits, so that of images with probability 0.8 eight in ten show pneumonia; fitted on validation."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit

from xray_pneumonia.evaluation.intervals import wilson
from xray_pneumonia.evaluation.metrics import BINS
from xray_pneumonia.types import Vector

Method = Literal["temperature", "platt", "none"]
COLDEST, HOTTEST = 0.05, 20.0


@dataclass(frozen=True)
class Calibration:
    """A linear map of logits: calibrated = logit / temperature + bias."""

    temperature: float = 1.0
    bias: float = 0.0

    def logits(self, logit: npt.ArrayLike) -> Vector:
        """Calibrate logits (N,)."""
        return np.asarray(logit, np.float64) / self.temperature + self.bias

    def apply(self, table: pd.DataFrame) -> pd.DataFrame:
        """Set the probabilities of a table to the calibrated ones; its logits stay raw."""
        return table.assign(probability=expit(self.logits(table["logit"])))


def fit(logit: npt.ArrayLike, label: npt.ArrayLike, *, method: Method) -> Calibration:
    """Fit a calibration of logits (N,) to labels (N,) of 0 and 1 by the least log loss.

    `temperature` is that of Guo et al. (ICML 2017). `platt` adds a bias and aims at his smoothed targets
    (Platt, 1999), without which separable classes would have no answer.
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
    """Compare probability with frequency in bins of equal width.

    Returns:
        One row for each bin that holds images: the means `probability` and `frequency`, `low`, `high` (Wilson's
        interval of `frequency`, at the number of patients), `images`, `patients`.
    """
    bins = np.minimum((table["probability"] * BINS).astype(int), BINS - 1)
    rows = []
    for _, part in table.groupby(bins):
        frequency, patients = float(part["label"].mean()), int(part["patient"].nunique())
        low, high = wilson(frequency * patients, patients)
        rows.append((float(part["probability"].mean()), frequency, low, high, len(part), patients))
    return pd.DataFrame(rows, columns=["probability", "frequency", "low", "high", "images", "patients"])


def _loss(logit: Vector, target: Vector) -> float:
    return float(np.mean(np.logaddexp(0, logit) - target * logit))
