"""Defines every metric once, and computes all of them under many weightings of the patients at the same time.

To add a metric, add a row to `METRICS`: what can be monitored, the reports and `xray compare` read that table. One
weighting of all ones gives the metrics themselves, many random ones a bootstrap. What is undefined (a class that is
missing, no image that was called PNEUMONIA) is NaN, never 0.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit

from xray_pneumonia.errors import InputError
from xray_pneumonia.types import Vector

Mask = npt.NDArray[np.bool_]
Direction = Literal["max", "min"]

BINS = 10  # of equal width, for the calibration error
COUNTS = 4  # of the columns that `Weighted` sums; the others judge probabilities
BLOCK = 2**20  # weights held in memory at once; ranks take about ten arrays of this size


class Weighted:
    """Sums over a table of predictions, under B weightings of its patients.

    Args:
        sums: (B, 6 + BINS), the columns of `_columns`.
        positive: (B, G) weight of the images with pneumonia at each of G distinct scores, from the highest down.
        negative: (B, G) that of the normal images.
    """

    def __init__(self, sums: Vector, positive: Vector, negative: Vector) -> None:
        self.tp, self.fp, self.fn, self.tn, self.squared_error, self.log_loss = sums[:, :6].T  # (B,) each
        self.bin_gaps = sums[:, 6:]
        self.positive, self.negative = positive, negative
        self.images = self.tp + self.fp + self.fn + self.tn

    @cached_property
    def above(self) -> Vector:
        """Weight of the images with pneumonia at each score or above, (B, G)."""
        return np.cumsum(self.positive, axis=1)


@dataclass(frozen=True)
class Metric:
    """How a metric is called, which direction is better, and how it is computed."""

    title: str  # in reports
    direction: Direction  # whether more or less of it is better
    function: Callable[[Weighted], Vector]  # of a weighted table, (B,)
    every_epoch: bool = False  # logged after each epoch, and so something that can be monitored
    # Of which images it is a proportion, if it is one; such metrics get Wilson's interval.
    proportion_of: Literal["images", "pneumonia", "normal", "called", "not called"] | None = None


def ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Vector:
    """Divide; NaN where there is nothing to divide by."""
    whole = np.asarray(whole, np.float64)
    return np.asarray(np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0), np.float64)


def _sensitivity(w: Weighted) -> Vector:
    return ratio(w.tp, w.tp + w.fn)


def _specificity(w: Weighted) -> Vector:
    return ratio(w.tn, w.tn + w.fp)


def _calibration_error(w: Weighted) -> Vector:
    """Mean gap between probability and frequency over bins of equal width (Naeini et al., AAAI 2015)."""
    return ratio(np.abs(w.bin_gaps).sum(axis=1), w.images)


def _auroc(w: Weighted) -> Vector:
    """Share of pairs that are ranked rightly; equal scores count half."""
    pairs = np.einsum("bg,bg->b", w.negative, w.above - w.positive / 2)
    return ratio(pairs, (w.tp + w.fn) * (w.tn + w.fp))


def _average_precision(w: Weighted) -> Vector:
    """Mean of the precision over the images with pneumonia, as in scikit-learn; NaN without normal images."""
    reached = w.above + np.cumsum(w.negative, axis=1)
    precision = np.divide(w.above, reached, out=np.zeros_like(reached), where=reached > 0)
    found = np.einsum("bg,bg->b", w.positive, precision)
    return np.where(w.tn + w.fp > 0, ratio(found, w.tp + w.fn), np.nan)


METRICS = {  # title, direction, function, every_epoch, proportion_of
    "auroc": Metric("AUROC", "max", _auroc, True),
    "average_precision": Metric("average precision", "max", _average_precision, True),
    "accuracy": Metric("accuracy", "max", lambda w: ratio(w.tp + w.tn, w.images), True, "images"),
    "balanced_accuracy": Metric("balanced accuracy", "max", lambda w: (_sensitivity(w) + _specificity(w)) / 2, True),
    "sensitivity": Metric("sensitivity", "max", _sensitivity, True, "pneumonia"),
    "specificity": Metric("specificity", "max", _specificity, True, "normal"),
    "ppv": Metric("positive predictive value", "max", lambda w: ratio(w.tp, w.tp + w.fp), False, "called"),
    "npv": Metric("negative predictive value", "max", lambda w: ratio(w.tn, w.tn + w.fn), False, "not called"),
    "f1": Metric("F1", "max", lambda w: ratio(2 * w.tp, 2 * w.tp + w.fp + w.fn)),
    "brier": Metric("Brier score", "min", lambda w: ratio(w.squared_error, w.images)),
    "log_loss": Metric("log loss", "min", lambda w: ratio(w.log_loss, w.images)),
    "calibration_error": Metric("calibration error", "min", _calibration_error),
}
EPOCH_METRICS = tuple(name for name, metric in METRICS.items() if metric.every_epoch)
OF_RANKS = {"auroc", "average_precision"}  # which cost more than all others together
OF_PROBABILITIES = ("brier", "log_loss", "calibration_error")  # what calibration changes

# What can choose the best epoch: all that is logged after every validation.
MONITORED: dict[str, Direction] = {
    "val/loss": "min",
    **{f"val/{name}": METRICS[name].direction for name in EPOCH_METRICS},
}
if TYPE_CHECKING:
    Monitor: TypeAlias = str
else:
    Monitor = Literal[tuple(MONITORED)]


def monitor_mode(monitor: str, mode: str | None = None) -> Direction:
    """Tell whether more (`max`) or less (`min`) of a monitored metric is better.

    Raises:
        InputError: there is no such metric, or `mode` says the opposite.
    """
    direction = MONITORED.get(monitor)
    if direction is None:
        raise InputError(f"monitor={monitor}: no such metric; choose {', '.join(MONITORED)}")
    if mode not in (None, direction):
        worst = "the least" if direction == "max" else "the most"
        raise InputError(f"mode={mode}: would keep the epoch with {worst} monitor={monitor}; leave mode=null")
    return direction


class WeightedMetrics:
    """The metrics of one table as a function of the weights of its patients.

    Ratios of sums need one sum for each patient, so a thousand weightings are one product of matrices; AUROC and
    average precision need the images in order of their scores.

    Args:
        label: (N,) of 0 and 1.
        probability: (N,) of PNEUMONIA, in [0, 1].
        patient: (N,); resampling moves all images of a patient together.
        called: (N,) which images are called PNEUMONIA.
        score: (N,) what ranks the images: logits, since certain probabilities tie.
        weights: (N,) of the images in what judges probabilities, with mean 1; see `prevalence_weights`.
    """

    def __init__(
        self,
        label: npt.ArrayLike,
        probability: npt.ArrayLike,
        patient: npt.ArrayLike,
        *,
        called: Mask,
        score: Vector,
        weights: Vector | None = None,
    ) -> None:
        truth = np.asarray(label) > 0.5
        codes, patients = pd.factorize(np.asarray(patient))
        self.codes, self.patients, self.images = codes.astype(np.int64), len(patients), len(truth)
        self.label, self.score = truth, score
        columns = _columns(truth, np.asarray(probability, np.float64), called)
        if weights is not None:
            columns[COUNTS:] = [column * weights for column in columns[COUNTS:]]
        sums = [np.bincount(self.codes, column, minlength=self.patients) for column in columns]
        self._sums = np.stack(sums, axis=1)  # (P, columns)
        order = np.argsort(-score, kind="stable")
        self._ordered, self._truth = self.codes[order], truth[order]
        changes = np.flatnonzero(np.diff(score[order])) + 1
        self._ties = np.concatenate([[0], changes]) if len(changes) + 1 < len(truth) else None
        everyone = np.ones(len(truth), bool)
        parts = {"images": everyone, "pneumonia": truth, "normal": ~truth, "called": called, "not called": ~called}
        counts = {name: (int(part.sum()), len(np.unique(codes[part]))) for name, part in parts.items()}
        self.behind = {name: counts[one.proportion_of or "images"] for name, one in METRICS.items()}  # images, patients

    @classmethod
    def of(cls, table: pd.DataFrame, *, threshold: float, prevalence: float | None = None) -> Self:
        """Prepare the metrics of a table of predictions; images are called PNEUMONIA from `threshold` on.

        Probabilities that hold at a `prevalence` are judged on images weighted to it; None weighs all alike.
        """
        weights = prevalence_weights(table["label"], prevalence)
        called = table["probability"].to_numpy() >= threshold
        score = table["logit"].to_numpy(np.float64)
        return cls(table["label"], table["probability"], table["patient"], called=called, score=score, weights=weights)

    def __call__(self, weights: Vector, names: Collection[str] = ()) -> dict[str, Vector]:
        """Weigh (B, P) patients; returns (B,) values for each of `METRICS`, or of those named."""
        names = names or tuple(METRICS)
        ordered = self._ordered if OF_RANKS & set(names) else self._ordered[:0]
        rows = weights[:, ordered]  # (B, N), from the highest score down
        positive = rows * self._truth[: len(ordered)]
        negative = rows - positive
        if self._ties is not None and len(ordered):
            positive = np.add.reduceat(positive, self._ties, axis=1)
            negative = np.add.reduceat(negative, self._ties, axis=1)
        weighted = Weighted(weights @ self._sums, positive, negative)
        return {name: METRICS[name].function(weighted) for name in names}

    def once(self) -> dict[str, float]:
        """Compute the metrics of the table as it is."""
        return {name: float(values[0]) for name, values in self(np.ones((1, self.patients))).items()}


def table_metrics(table: pd.DataFrame, *, threshold: float, prevalence: float | None = None) -> dict[str, float]:
    """Compute all metrics of a table of predictions, as `WeightedMetrics.of` prepares them."""
    return WeightedMetrics.of(table, threshold=threshold, prevalence=prevalence).once()


def prevalence_weights(label: npt.ArrayLike, prevalence: float | None) -> Vector:
    """Weigh images (N,) so that a share `prevalence` is ill; all alike for None, or where a class is missing."""
    truth = np.asarray(label) > 0.5
    share = truth.mean()
    if prevalence is None or share in (0, 1):
        return np.ones(len(truth))
    return np.asarray(np.where(truth, prevalence / share, (1 - prevalence) / (1 - share)), np.float64)


def epoch_metrics(
    logits: npt.NDArray[np.floating], labels: npt.NDArray[np.number], *, threshold: float = 0.5
) -> dict[str, float]:
    """Compute `EPOCH_METRICS` of logits (N,) and labels (N,) of 0 and 1; all are NaN where a logit is not finite."""
    if not len(logits) or not np.isfinite(logits).all():
        return dict.fromkeys(EPOCH_METRICS, math.nan)
    score = logits.astype(np.float64)
    called = score >= math.log(threshold / (1 - threshold))
    found = WeightedMetrics(labels, expit(score), np.arange(len(score)), called=called, score=score).once()
    return {name: found[name] for name in EPOCH_METRICS}


def predictive_values(
    sensitivity: npt.ArrayLike, specificity: npt.ArrayLike, *, prevalence: float
) -> tuple[Vector, Vector]:
    """Apply Bayes' rule: what a positive and a negative answer are worth where so many are ill.

    Returns:
        Positive and negative predictive value; NaN where no such answer is ever given.
    """
    se, sp = np.asarray(sensitivity, np.float64), np.asarray(specificity, np.float64)
    ill, well = prevalence, 1 - prevalence
    return ratio(se * ill, se * ill + (1 - sp) * well), ratio(sp * well, sp * well + (1 - se) * ill)


def _columns(truth: Mask, chance: Vector, called: Mask) -> list[Vector]:
    """List what `Weighted` sums: tp, fp, fn, tn, squared error, log loss, gap of each bin; (N,) each."""
    tiny = np.finfo(np.float64).eps  # as scikit-learn clips: a certain mistake costs 36, not infinity
    safe = np.clip(chance, tiny, 1 - tiny)
    loss = -np.log(np.where(truth, safe, 1 - safe))
    bins = np.minimum((chance * BINS).astype(np.int64), BINS - 1)
    gaps = [(truth - chance) * (bins == place) for place in range(BINS)]
    counts = [truth & called, ~truth & called, truth & ~called, ~truth & ~called]
    return [*(count.astype(np.float64) for count in counts), (truth - chance) ** 2, loss, *gaps]
