"""Computes confidence intervals that resample patients, not images, and those of Wilson and DeLong."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtr, ndtri  # scipy.stats takes half a second to import

from xray_pneumonia.evaluation.metrics import BLOCK, WeightedMetrics
from xray_pneumonia.types import Vector

CONFIDENCE = 0.95
Z = float(ndtri((1 + CONFIDENCE) / 2))


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; NaN where undefined. `basis` says what it rests on, or why it is missing."""

    value: float
    low: float
    high: float
    basis: str = ""

    def __str__(self) -> str:
        """Render as `0.953 (0.934 to 0.969)`."""
        if np.isnan(self.value):
            return "undefined"
        return f"{self.value:.3f}" + ("" if np.isnan(self.low) else f" ({self.low:.3f} to {self.high:.3f})")


def patient_weights(patients: int, *, replicates: int, seed: int, images: int) -> Iterator[Vector]:
    """Draw patients with replacement, as often as there are patients; yields blocks (b, P) in bounded memory."""
    rng = np.random.default_rng(seed)
    size = max(1, BLOCK // max(1, images))
    for start in range(0, replicates, size):
        count = min(size, replicates - start)
        drawn = rng.integers(patients, size=(count, patients)) + np.arange(count)[:, None] * patients
        yield np.bincount(drawn.ravel(), minlength=count * patients).reshape(count, patients).astype(np.float64)


def replicate(metrics: WeightedMetrics, *, replicates: int, seed: int) -> dict[str, Vector]:
    """Compute all metrics on resampled patients; returns (replicates,) values for each name."""
    blocks = patient_weights(metrics.patients, replicates=replicates, seed=seed, images=metrics.images)
    parts = [metrics(block) for block in blocks]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def estimates(metrics: WeightedMetrics, samples: dict[str, Vector]) -> dict[str, Estimate]:
    """Put its interval around each metric of a table, from what `replicate` gave."""
    return {
        name: interval(value, samples[name], patients=metrics.patients_behind.get(name))
        for name, value in metrics.once().items()
    }


def bootstrap(table: pd.DataFrame, *, threshold: float, replicates: int, seed: int) -> dict[str, Estimate]:
    """Estimate all metrics of a table of predictions, each with its 95 % interval."""
    metrics = WeightedMetrics.of(table, threshold=threshold)
    return estimates(metrics, replicate(metrics, replicates=replicates, seed=seed))


def interval(value: float, samples: Vector, *, patients: int | None = None) -> Estimate:
    """Turn replicates into an interval.

    A proportion gets Wilson's interval at the effective number of images that its variance over
    resampled patients implies, so that 100 % of 20 patients is not "100 % to 100 %". All else gets the
    percentiles of the replicates.

    Args:
        value: of the table itself.
        samples: (B,) values on resampled patients; NaN where a replicate lacks what it needs.
        patients: behind a proportion; None for what is no proportion.
    """
    known = samples[np.isfinite(samples)]
    if np.isnan(value) or len(known) < max(2, len(samples) // 2):
        return Estimate(value, np.nan, np.nan, "too few patients for an interval")
    if patients is not None:
        variance = float(known.var())
        effective = value * (1 - value) / variance if variance > 0 else float(patients)
        low, high = wilson(value * effective, effective)
        return Estimate(value, low, high, f"{patients} patients")
    if float(np.ptp(known)) == 0:
        return Estimate(value, np.nan, np.nan, "does not vary over patients")
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high))


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """Compute the score interval of a proportion (Wilson, JASA 1927); NaN without trials."""
    if trials <= 0:
        return np.nan, np.nan
    share = successes / trials
    centre = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z / (1 + Z**2 / trials) * np.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def delong(label: npt.ArrayLike, score: npt.ArrayLike, patient: npt.ArrayLike | None = None) -> Estimate:
    """Compute AUROC with the interval of DeLong et al. (Biometrics 1988).

    With `patient` the variance is that of Obuchowski (Biometrics 1997) for clustered data; with one image
    a patient the two are equal.
    """
    area, variance = _areas(np.asarray(label), np.asarray(score, np.float64)[None], patient)
    half = Z * float(np.sqrt(variance[0, 0]))
    low, high = np.clip([area[0] - half, area[0] + half], 0, 1)
    return Estimate(float(area[0]), float(low), float(high), "DeLong")


def delong_difference(
    label: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike, patient: npt.ArrayLike | None = None
) -> tuple[Estimate, float]:
    """Compare the AUROC of two scores on the same images; returns first - second and its two-sided p-value."""
    scores = np.stack([np.asarray(first, np.float64), np.asarray(second, np.float64)])
    area, variance = _areas(np.asarray(label), scores, patient)
    gap = float(area[0] - area[1])
    spread = float(np.sqrt(max(0.0, variance[0, 0] + variance[1, 1] - 2 * variance[0, 1])))
    if spread == 0:
        return Estimate(gap, np.nan, np.nan, "the scores rank alike"), 1.0 if gap == 0 else np.nan
    half = Z * spread
    return Estimate(gap, gap - half, gap + half, "DeLong"), float(2 * ndtr(-abs(gap) / spread))


def _areas(label: npt.NDArray[np.int64], scores: Vector, patient: npt.ArrayLike | None) -> tuple[Vector, Vector]:
    """Compute the areas (M,) and their covariance (M, M) of M scores (M, N)."""
    ill, well = scores[:, label == 1], scores[:, label == 0]
    m, n = ill.shape[1], well.shape[1]
    if not (m and n):
        return np.full(len(scores), np.nan), np.full((len(scores), len(scores)), np.nan)
    ranks = _ranks(np.concatenate([ill, well], axis=1))
    above = (ranks[:, :m] - _ranks(ill)) / n  # (M, m): share of the healthy that each ill one outranks
    below = 1 - (ranks[:, m:] - _ranks(well)) / m
    areas = above.mean(axis=1)
    codes = np.arange(len(label)) if patient is None else pd.factorize(np.asarray(patient))[0]
    clusters = int(codes.max()) + 1
    parts = []
    for deviation, chosen in (((above - areas[:, None]) / m, label == 1), ((below - areas[:, None]) / n, label == 0)):
        sums = np.stack([np.bincount(codes[chosen], row, minlength=clusters) for row in deviation])
        parts.append((sums, len(np.unique(codes[chosen]))))
    (tens, some), (ones, others) = parts
    cross = tens @ ones.T * _unbiased(clusters)
    return areas, tens @ tens.T * _unbiased(some) + ones @ ones.T * _unbiased(others) + cross + cross.T


def _ranks(scores: Vector) -> Vector:
    """Rank each row of (M, N) scores from 1 on; ties get their mean."""
    return pd.DataFrame(scores.T).rank().to_numpy().T


def _unbiased(count: int) -> float:
    return count / (count - 1) if count > 1 else np.nan
