"""Computes 95 % confidence intervals by patient, not by image; where too few patients are behind a figure, none."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit, logit, ndtri, stdtr, stdtrit  # scipy.stats takes half a second to import

from xray_pneumonia.evaluation.metrics import BLOCK, METRICS, WeightedMetrics
from xray_pneumonia.types import Vector

CONFIDENCE = 0.95
Z = float(ndtri((1 + CONFIDENCE) / 2))
FEWEST = 2  # patients behind a figure that gets an interval, of each class for AUROC
FEWEST_RESAMPLED = 20  # the same for percentiles of resampled patients, which cover 84 % at 10 patients, 90 % at 20
NO_VARIANCE = 1e-12  # less is rounding


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; NaN where undefined.

    `basis` says how the interval was computed, or why there is none; `images` and `patients` what the value rests on.
    """

    value: float
    low: float
    high: float
    basis: str = ""
    images: int = 0
    patients: int = 0

    @property
    def count(self) -> str:
        """Word what the value rests on."""
        return f"{self.images} / {self.patients}"

    def __str__(self) -> str:
        """Render as `0.953 (0.934 to 0.969)`."""
        if np.isnan(self.value):
            return "undefined"
        return f"{self.value:.3f}" + (
            " (no interval)" if np.isnan(self.low) else f" ({self.low:.3f} to {self.high:.3f})"
        )


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
    found = {}
    for name, value in metrics.once().items():
        images, patients = metrics.behind[name]
        around = proportion if METRICS[name].proportion_of else interval
        found[name] = around(value, samples[name], images=images, patients=patients)
    found["auroc"] = delong(metrics.label, metrics.score, metrics.codes)
    found["balanced_accuracy"] = mean_of_rates(found["sensitivity"], found["specificity"], found["balanced_accuracy"])
    # Chance alone makes it positive, so percentiles miss the truth; `calibration_check` says by how much.
    found["calibration_error"] = replace(found["calibration_error"], low=np.nan, high=np.nan, basis="see its floor")
    return found


def bootstrap(table: pd.DataFrame, *, threshold: float, replicates: int, seed: int) -> dict[str, Estimate]:
    """Estimate all metrics of a table of predictions, each with its 95 % interval."""
    metrics = WeightedMetrics.of(table, threshold=threshold)
    return estimates(metrics, replicate(metrics, replicates=replicates, seed=seed))


def interval(value: float, samples: Vector, *, images: int, patients: int) -> Estimate:
    """Take the percentiles of (B,) values on resampled patients, NaN where a replicate lacks what it needs."""
    known = samples[np.isfinite(samples)]
    bare = Estimate(value, np.nan, np.nan, f"fewer than {FEWEST_RESAMPLED} patients", images, patients)
    if np.isnan(value) or patients < FEWEST_RESAMPLED or len(known) < max(2, len(samples) // 2):
        return bare
    if float(known.var()) <= NO_VARIANCE:
        return replace(bare, basis="does not vary over patients")
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return replace(bare, low=float(low), high=float(high), basis="percentiles of resampled patients")


def proportion(value: float, samples: Vector, *, images: int, patients: int) -> Estimate:
    """Compute Wilson's interval of a proportion at the number of independent images that its variance implies.

    That number is at most the number of images, and that of the patients where nothing varies, so that 100 % of 20
    patients is not "100 % to 100 %". It is lowered for the degrees of freedom of few patients (Korn and Graubard,
    Survey Methodology 1998).

    Args:
        value: of the table itself.
        samples: (B,) values on resampled patients; NaN where a replicate lacks what it needs.
        images: that it is a proportion of.
        patients: of these images.
    """
    known = samples[np.isfinite(samples)]
    bare = Estimate(value, np.nan, np.nan, f"fewer than {FEWEST} patients", images, patients)
    if np.isnan(value) or patients < FEWEST or len(known) < max(2, len(samples) // 2):
        return replace(bare, basis=bare.basis if patients < FEWEST else "too few patients for an interval")
    variance = float(known.var())
    effective = min(images, value * (1 - value) / variance) if variance > NO_VARIANCE else float(patients)
    effective *= (Z / t_quantile(patients - 1)) ** 2
    low, high = wilson(value * effective, effective)
    return replace(bare, low=low, high=high, basis="Wilson, by patient")


def mean_of_rates(sensitivity: Estimate, specificity: Estimate, mean: Estimate) -> Estimate:
    """Put an interval around the mean of two rates of different images (Zou and Donner, Stat Med 2008: MOVER)."""
    rates = (sensitivity, specificity)
    low = mean.value - float(np.linalg.norm([one.value - one.low for one in rates])) / 2
    high = mean.value + float(np.linalg.norm([one.high - one.value for one in rates])) / 2
    basis = next((one.basis for one in rates if np.isnan(one.low)), "MOVER")
    return replace(mean, low=low, high=high, basis=basis)


def predictive_value(right: Estimate, wrong: Estimate, *, value: float, odds: float) -> Estimate:
    """Put an interval around a predictive value, 1 / (1 + odds * (1 - wrong) / right).

    The limits of the ratio come from those of both rates (Donner and Zou, Stat Methods Med Res 2012: MOVER-R).

    Args:
        right: the rate of right answers in the class that is answered: sensitivity, for the positive one.
        wrong: the rate of right answers in the other class.
        value: of the predictive value.
        odds: of the other class against this one, where patients are as frequent as is asked for.
    """
    images, patients = right.images + wrong.images, min(right.patients, wrong.patients)
    if np.isnan([value, right.low, wrong.low]).any():
        basis = right.basis if np.isnan(right.low) else wrong.basis
        return Estimate(value, np.nan, np.nan, basis, images, patients)
    top, least, most = 1 - wrong.value, 1 - wrong.high, 1 - wrong.low  # of 1 - wrong: value, low, high
    low = _ratio(top * right.value, least * (2 * top - least), right.high * (2 * right.value - right.high), sign=-1)
    high = _ratio(top * right.value, most * (2 * top - most), right.low * (2 * right.value - right.low), sign=1)
    return Estimate(value, 1 / (1 + odds * high), 1 / (1 + odds * low), "MOVER-R", images, patients)


def _ratio(product: float, above: float, below: float, *, sign: int) -> float:
    """Solve `below` R^2 - 2 `product` R + `above` = 0 for the lower (-1) or upper (1) limit R of a ratio."""
    root = float(np.sqrt(max(0.0, product**2 - above * below)))
    if sign < 0:
        return above / (product + root) if product + root > 0 else 0.0
    return (product + root) / below if below > 0 else np.inf


def t_quantile(freedom: float) -> float:
    """Return how many standard errors a 95 % interval reaches with so many degrees of freedom."""
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """Compute the score interval of a proportion (Wilson, JASA 1927); NaN without trials."""
    if trials <= 0:
        return np.nan, np.nan
    share = successes / trials
    centre = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z / (1 + Z**2 / trials) * np.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def share(flags: pd.Series, patient: pd.Series) -> Estimate:
    """Estimate a share of images with Wilson's interval at the number of their patients."""
    patients = int(patient.nunique())
    value = float(flags.mean()) if len(flags) else np.nan
    return Estimate(value, *wilson(value * patients, patients), "Wilson, at the patients", len(flags), patients)


def delong(label: npt.ArrayLike, score: npt.ArrayLike, patient: npt.ArrayLike | None = None) -> Estimate:
    """Compute AUROC with the interval of DeLong et al. (Biometrics 1988), on the logit scale with Student's t.

    With `patient` the variance is that of Obuchowski (Biometrics 1997) for clustered data; with one image
    a patient the two are equal. Where nothing varies, as at AUROC 1, it is Wilson's at the patients of the rarer class.
    """
    truth = np.asarray(label) == 1
    areas, variance = _areas(truth, np.asarray(score, np.float64)[None], patient)
    area, spread, images = float(areas[0]), float(variance[0, 0]), len(truth)
    fewest, patients = _patients(truth, patient)
    if np.isnan(area) or fewest < FEWEST:
        return Estimate(area, np.nan, np.nan, f"fewer than {FEWEST} patients of a class", images, patients)
    if not spread > NO_VARIANCE or area in (0, 1):
        return Estimate(
            area, *wilson(area * fewest, fewest), "Wilson, at the patients of the rarer class", images, patients
        )
    half = t_quantile(fewest - 1) * np.sqrt(spread) / (area * (1 - area))
    low, high = expit(logit(area) + np.array([-half, half]))
    return Estimate(area, float(low), float(high), "DeLong, logit scale", images, patients)


def _patients(truth: npt.NDArray[np.bool_], patient: npt.ArrayLike | None) -> tuple[int, int]:
    """Count the patients of the rarer class, and all of them."""
    owner = np.arange(len(truth)) if patient is None else np.asarray(patient)
    return min(len(np.unique(owner[truth])), len(np.unique(owner[~truth]))), len(np.unique(owner))


def delong_difference(
    label: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike, patient: npt.ArrayLike | None = None
) -> tuple[Estimate, float]:
    """Compare the AUROC of two scores on the same images; returns first - second and its two-sided p-value."""
    truth = np.asarray(label) == 1
    area, variance = _areas(truth, np.stack([np.asarray(one, np.float64) for one in (first, second)]), patient)
    fewest, patients = _patients(truth, patient)
    gap = float(area[0] - area[1])
    spread = float(variance[0, 0] + variance[1, 1] - 2 * variance[0, 1])
    bare = Estimate(gap, np.nan, np.nan, "the scores rank alike", len(truth), patients)
    if fewest < FEWEST:
        return replace(bare, basis=f"fewer than {FEWEST} patients of a class"), np.nan
    if spread <= NO_VARIANCE:
        return bare, 1.0 if gap == 0 else np.nan
    half = t_quantile(fewest - 1) * np.sqrt(spread)
    p_value = 2 * float(stdtr(fewest - 1, -abs(gap) / np.sqrt(spread)))
    return replace(bare, low=gap - half, high=gap + half, basis="DeLong"), p_value


def _areas(label: npt.NDArray[np.bool_], scores: Vector, patient: npt.ArrayLike | None) -> tuple[Vector, Vector]:
    """Compute the areas (M,) and their covariance (M, M) of M scores (M, N)."""
    ill, well = scores[:, label], scores[:, ~label]
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
    for deviation, chosen in (((above - areas[:, None]) / m, label), ((below - areas[:, None]) / n, ~label)):
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
