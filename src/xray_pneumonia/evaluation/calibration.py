"""Calibrates logits on validation, and shows the evidence as a probability at a named prevalence."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logit

from xray_pneumonia.evaluation.intervals import wilson
from xray_pneumonia.evaluation.metrics import BINS
from xray_pneumonia.types import Vector

Method = Literal["temperature", "platt", "none"]
COLDEST, HOTTEST = 0.05, 20.0


@dataclass(frozen=True)
class Calibration:
    """A linear map of logits to evidence, and the prevalence at which evidence is shown as a probability.

    Evidence = logit / temperature + bias is the log of how much more frequent such an image is among the ill than among
    the healthy; where a share `prevalence` is ill, its calibrated logit is evidence + logit(prevalence). Models of
    version 0.1.0 name no prevalence: their bias holds that of their validation split.
    """

    temperature: float = 1.0
    bias: float = 0.0
    prevalence: float | None = None

    def evidence(self, scores: npt.ArrayLike) -> Vector:
        """Map logits (N,) of a net to evidence."""
        return np.asarray(scores, np.float64) / self.temperature + self.bias

    @property
    def offset(self) -> float:
        """What evidence is moved by to be shown."""
        return 0.0 if self.prevalence is None else float(logit(self.prevalence))

    def logits(self, scores: npt.ArrayLike) -> Vector:
        """Calibrate logits (N,) of a net, at the prevalence."""
        return self.evidence(scores) + self.offset

    def apply(self, table: pd.DataFrame) -> pd.DataFrame:
        """Set the probabilities of a table to the calibrated ones; its logits stay raw."""
        return table.assign(probability=expit(self.logits(table["logit"])))

    def naming(self, share: float) -> "Calibration":
        """Name the prevalence that the bias holds, where none is named; the calibrated logits stay the same."""
        if self.prevalence is not None:
            return self
        return Calibration(self.temperature, self.bias - float(logit(share)), share)

    def at(self, prevalence: float) -> "Calibration":
        """Show the same evidence where a share `prevalence` is ill."""
        return replace(self, prevalence=prevalence)


def translate(probability: npt.ArrayLike, *, prevalence: float, to: float) -> Vector:
    """Say what probabilities (N,), shown where a share `prevalence` is ill, are where a share `to` is (Bayes' rule)."""
    return np.asarray(expit(logit(probability) - logit(prevalence) + logit(to)), np.float64)


def fit(scores: npt.ArrayLike, label: npt.ArrayLike, *, method: Method) -> Calibration:
    """Fit a calibration of logits (N,) to labels (N,) of 0 and 1 by the least log loss.

    `temperature` is that of Guo et al. (ICML 2017); `platt` adds a bias, without which weighted classes are never
    calibrated. Both aim at Platt's smoothed targets (1999), without which separable classes would have no answer.
    """
    values, truth = np.asarray(scores, np.float64), np.asarray(label, np.float64)
    if method == "none":
        return Calibration()
    ill, well = truth.sum(), (1 - truth).sum()
    target = np.where(truth == 1, (ill + 1) / (ill + 2), 1 / (well + 2))
    if method == "temperature":
        bounds = (np.log(COLDEST), np.log(HOTTEST))
        found = minimize_scalar(lambda t: _loss(values / np.exp(t), target), bounds=bounds, method="bounded")
        return Calibration(float(np.exp(found.x)))
    found = minimize(lambda w: _loss(np.exp(w[0]) * values + w[1], target), np.zeros(2), method="BFGS")
    slope, bias = float(np.clip(np.exp(found.x[0]), 1 / HOTTEST, 1 / COLDEST)), float(found.x[1])
    if slope != np.exp(found.x[0]):  # the bias of another slope is none of this one
        bias = float(minimize_scalar(lambda b: _loss(slope * values + b, target)).x)
    return Calibration(1 / slope, bias)


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


def _loss(scores: Vector, target: Vector) -> float:
    return float(np.mean(np.logaddexp(0, scores) - target * scores))
