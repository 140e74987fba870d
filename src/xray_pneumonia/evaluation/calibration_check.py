"""Measures calibration: the error with the floor that chance alone gives it, slope and intercept with intervals."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit, logit

from xray_pneumonia.evaluation.intervals import FEWEST, Estimate, t_quantile
from xray_pneumonia.evaluation.metrics import BINS, prevalence_weights
from xray_pneumonia.types import Vector

DRAWS = 400  # of labels, for the floor
STEPS, CONVERGED = 50, 1e-9  # of Newton's method
STEEPEST = 50.0  # a slope beyond means that the classes do not overlap, so that none fits


@dataclass(frozen=True)
class CalibrationCheck:
    """How far probabilities are from frequencies.

    `error` is the calibration error in ten bins, `floor` what a perfectly calibrated model with these probabilities
    would have on so few images, `excess` their difference. `slope` is 1 and `intercept` 0 for a calibrated model.
    All hold at a `prevalence`, to which the images are weighted; `share` is that of the ill among them. The model may
    name none (None); then it is judged on the images as they are.
    """

    prevalence: float | None
    share: float

    error: float
    floor: float
    excess: float
    slope: Estimate
    intercept: Estimate


def check_calibration(table: pd.DataFrame, *, seed: int, prevalence: float | None = None) -> CalibrationCheck:
    """Check the probabilities of a table of predictions, which hold at a prevalence; None: at that of the table.

    The floor is the mean error over labels drawn with these probabilities (Broecker and Smith, Weather and Forecasting
    2007; Kumar et al., NeurIPS 2019). Slope and intercept are those of Cox (Biometrika 1958): of a logistic regression
    of the label on the logit of the probability; the intercept with the slope held at 1.
    """
    chance, truth = (table[name].to_numpy(np.float64) for name in ("probability", "label"))
    bins = np.minimum((chance * BINS).astype(int), BINS - 1)
    rng = np.random.default_rng(seed)
    tiny, share = np.finfo(np.float64).eps, float(truth.mean())
    score, owner = logit(np.clip(chance, tiny, 1 - tiny)), pd.factorize(table["patient"])[0]
    if prevalence is not None and 0 < share < 1:  # what the same evidence means among the images as they are
        score = score + logit(share) - logit(prevalence)

    def measure(label: Vector) -> float:
        gaps = prevalence_weights(label, prevalence) * (label - chance)
        return float(np.abs(np.bincount(bins, gaps)).sum() / len(gaps))

    error, here = measure(truth), expit(score)
    floor = float(np.mean([measure((rng.random(len(here)) < here).astype(np.float64)) for _ in range(DRAWS)]))
    ones = np.ones_like(score)
    slope = _fit(np.stack([score, ones], axis=1), truth, owner, offset=0 * score)
    intercept = _fit(ones[:, None], truth, owner, offset=score)
    return CalibrationCheck(prevalence, share, error, floor, error - floor, slope, intercept)


def _fit(features: Vector, truth: Vector, owner: npt.NDArray[np.int64], *, offset: Vector) -> Estimate:
    """Fit a logistic regression by Newton's method; returns the first weight, its variance summed by patient."""
    patients = int(owner.max()) + 1
    bare = Estimate(np.nan, np.nan, np.nan, "the classes do not overlap", len(truth), patients)
    weights, step = np.zeros(features.shape[1]), np.inf
    for _ in range(STEPS):
        found = expit(features @ weights + offset)
        curvature = features.T @ (features * (found * (1 - found))[:, None])
        if not np.linalg.cond(curvature) < 1 / CONVERGED or abs(weights[0]) > STEEPEST:
            return bare
        change = np.linalg.solve(curvature, features.T @ (truth - found))
        weights, step = weights + change, float(np.abs(change).max())
        if step < CONVERGED:
            break
    if patients < FEWEST:
        return replace(bare, value=float(weights[0]), basis="1 patient")
    if step >= CONVERGED:
        return bare
    scores = features * (truth - expit(features @ weights + offset))[:, None]
    sums = np.stack([np.bincount(owner, column, minlength=patients) for column in scores.T], axis=1)
    inverse = np.linalg.inv(curvature)
    variance = (inverse @ (sums.T @ sums) @ inverse)[0, 0] * patients / (patients - 1)
    half = t_quantile(patients - 1) * float(np.sqrt(variance))
    value = float(weights[0])
    return Estimate(value, value - half, value + half, "logistic regression, by patient", len(truth), patients)
