"""Answers "normal", "pneumonia" or "look closer": a margin around the operating point that promises few errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import betaincinv, expit, logit
from typing_extensions import TypedDict

from xray_pneumonia.evaluation.intervals import CONFIDENCE, wilson
from xray_pneumonia.types import Vector

ANSWERS = ("normal", "look closer", "pneumonia")
SHOWN = (1.0, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7)  # of them, for which the trade-off is shown


@dataclass(frozen=True)
class Band:
    """The probabilities that are left to a human.

    Below `low` the answer is "normal", above `high` "pneumonia", between them "look closer". A closed band
    (`low` = `high`) answers everything, from that probability on with "pneumonia".
    """

    low: float
    high: float

    @classmethod
    def around(cls, threshold: float, margin: float) -> "Band":
        """Put a margin, in logits, on both sides of an operating point."""
        if not margin:
            return cls(threshold, threshold)
        return cls(*(float(expit(logit(threshold) + step)) for step in (-margin, margin)))

    def reaching(self, threshold: float) -> "Band":
        """Widen it to an operating point, so that no answer contradicts the label."""
        return Band(min(self.low, threshold), max(self.high, threshold))

    def answer(self, probability: npt.ArrayLike) -> npt.NDArray[np.str_]:
        """Answer (N,) images."""
        chance = np.asarray(probability, np.float64)
        ill = chance >= self.high if self.low == self.high else chance > self.high
        return np.asarray(ANSWERS)[np.where(ill, 2, np.where(chance < self.low, 0, 1))]


class Promise(TypedDict):
    """What a margin was fitted on, and what it promises of images exchangeable with those.

    `margin`, in logits, lies on both sides of the operating point; `answered` is the share of the `images` outside it.
    With 95 % confidence at most a share `bound` of the answers is wrong; where that is more than `max_error`, which was
    asked for, the sample certifies nothing. `folds` counts the out-of-fold predictions' nets; 0 for validation.
    """

    margin: float
    max_error: float
    bound: float
    answered: float
    images: int
    patients: int
    folds: int


def is_certified(promise: Promise) -> bool:
    """Tell whether what was asked for is promised."""
    return promise["bound"] <= promise["max_error"]


def fit_promise(
    distance: Vector,
    label: npt.ArrayLike,
    patient: npt.ArrayLike,
    *,
    max_error: float,
    folds: int = 0,
    sure: float = 0.7,
) -> Promise:
    """Find the least margin of which at most a share `max_error` of the answers is wrong, with 95 % confidence.

    Margins are tested from the widest (`sure` is answered) to none, each for "more answers are wrong", until the first
    test that fails: fixed-sequence testing, which needs no correction (Angelopoulos et al., Learn then Test, 2021;
    Geifman and El-Yaniv, NeurIPS 2017). The binomial bound counts images / `design_effect`.

    Args:
        distance: logits (N,) from the operating point; from 0 on an image is called PNEUMONIA.
        label: (N,) of 0 and 1.
        patient: (N,).
        max_error: of the answers.
        folds: nets that the logits come from, each on images it never saw; 0 for one net on its validation split.
        sure: share that the widest margin answers.
    """
    wrong, patients = (distance >= 0) != (np.asarray(label) > 0.5), len(np.unique(np.asarray(patient)))
    effect = design_effect(wrong, patient)
    known = {"max_error": max_error, "images": len(distance), "patients": patients, "folds": folds}
    shares = np.arange(round(100 * sure), 101) / 100  # from the surest images on; tried in this order
    found = _test(np.abs(distance), wrong, shares[0], effect=effect, known=known)
    for share in shares[1:]:
        narrower = _test(np.abs(distance), wrong, share, effect=effect, known=known)
        if not (is_certified(found) and is_certified(narrower)):
            break
        found = narrower
    return found


def _test(
    sizes: Vector, wrong: npt.NDArray[np.bool_], share: float, *, effect: float, known: Mapping[str, Any]
) -> Promise:
    """Bound the error of the answers to a share of images, the surest ones."""
    margin = _margin(np.sort(sizes), share)
    answered = sizes >= margin
    errors, right = (float((answered & part).sum()) / effect for part in (wrong, ~wrong))
    bound = float(betaincinv(errors + 1, right, CONFIDENCE)) if right else 1.0
    found = {"margin": margin, "bound": bound, "answered": float(answered.mean())}
    return Promise(**found, **known)  # type: ignore[typeddict-item, no-any-return]


def design_effect(flags: npt.NDArray[np.bool_], patient: npt.ArrayLike) -> float:
    """Divide the variance by patient of a share of images by that of independent images; at least 1."""
    share = flags.mean()
    codes, patients = pd.factorize(np.asarray(patient))
    if share in (0, 1) or len(patients) < 2:
        return 1.0
    sums = np.bincount(codes, flags - share)
    among_patients = (sums**2).sum() / (1 - 1 / len(patients))
    return max(1.0, float(among_patients / (len(flags) * share * (1 - share) / (1 - 1 / len(flags)))))


def stored_band(known: Sequence[float] | None, *, threshold: float) -> Band:
    """Read the band of a model card; a model without one answers everything, by its operating point."""
    return Band(*(known or (threshold, threshold))).reaching(threshold)


def count_answers(table: pd.DataFrame, band: Band) -> pd.DataFrame:
    """Count the answers: one row for each class, one column for each answer."""
    answers = pd.Categorical(band.answer(table["probability"]), categories=list(ANSWERS))
    return pd.crosstab(table["label"].to_numpy(), answers, dropna=False).reindex(
        index=[0, 1], columns=list(ANSWERS), fill_value=0
    )


def answered_and_wrong(table: pd.DataFrame, band: Band) -> tuple[float, float]:
    """Compute the share of images that are answered, and that of the answers which are wrong (NaN without any)."""
    answers = band.answer(table["probability"])
    answered = answers != "look closer"
    wrong = (answers == "pneumonia") != (table["label"] == 1)
    return float(answered.mean()), float(wrong[answered].mean()) if answered.any() else np.nan


def trade_off(validation: pd.DataFrame | None, table: pd.DataFrame, *, threshold: float) -> pd.DataFrame:
    """Compute coverage and accuracy of the answers as the margin grows.

    Returns:
        For each `share` of validation that is answered: `coverage` and `accuracy` of the answers on the table, and
        the interval `low`, `high` by the number of patients answered. Without `validation` no row.
    """
    rows: list[tuple[float, ...]] = []
    sizes = np.array([]) if validation is None else _distances(validation, threshold)
    for share in SHOWN if len(sizes) else ():
        band = Band.around(threshold, _margin(sizes, share))
        coverage, wrong = answered_and_wrong(table, band)
        patients = int(table.loc[band.answer(table["probability"]) != "look closer", "patient"].nunique())
        rows.append((share, coverage, 1 - wrong, *wilson((1 - wrong) * patients, patients)))
    return pd.DataFrame(rows, columns=["share", "coverage", "accuracy", "low", "high"], dtype=float)


def _distances(table: pd.DataFrame, threshold: float) -> Vector:
    return np.sort(np.abs(logit(table["probability"].to_numpy(np.float64)) - logit(threshold)))


def _margin(sizes: Vector, share: float) -> float:
    """Find the margin that leaves out the rest of a share, between two of the sorted sizes; 0 leaves out none."""
    out = int((1 - share) * len(sizes) + 1e-9)
    return float(sizes[out - 1] + sizes[out]) / 2 if out else 0.0
