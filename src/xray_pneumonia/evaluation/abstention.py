"""Answers "normal", "pneumonia" or "look closer", by split conformal prediction fitted on validation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_pneumonia.evaluation.intervals import wilson
from xray_pneumonia.types import Vector

ANSWERS = ("normal", "look closer", "pneumonia")
ERRORS = (0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.005)  # for which the trade-off is shown


@dataclass(frozen=True)
class Band:
    """The probabilities that are left to a human.

    Below `low` the answer is "normal", above `high` "pneumonia", between them "look closer". A closed band
    (`low` = `high`) answers everything, from that probability on with "pneumonia".
    """

    low: float
    high: float

    def reaching(self, threshold: float) -> "Band":
        """Widen it to an operating point, so that no answer contradicts the label."""
        return Band(min(self.low, threshold), max(self.high, threshold))

    def answer(self, probability: npt.ArrayLike) -> npt.NDArray[np.str_]:
        """Answer (N,) images."""
        chance = np.asarray(probability, np.float64)
        ill = chance >= self.high if self.low == self.high else chance > self.high
        return np.asarray(ANSWERS)[np.where(ill, 2, np.where(chance < self.low, 0, 1))]


def fit_band(table: pd.DataFrame, *, error: float, threshold: float) -> Band:
    """Fit a band on calibrated predictions on validation; it answers at most a share `error` of either class wrongly.

    Class-conditional split conformal prediction (Vovk, ACML 2012): a label stays possible for an image unless it is
    stranger than all but `error` of its own class on validation. Where exactly one label stays possible, the image is
    answered; where both do, it is left to a human. Where the classes are so well apart that none would, any threshold
    in between keeps the error, and the band closes there. It always reaches to the operating point. With exchangeable
    images at most `error` of each class gets the other's answer.
    """
    ill = np.sort(table.loc[table["label"] == 1, "probability"].to_numpy(np.float64))
    well = np.sort(1 - table.loc[table["label"] == 0, "probability"].to_numpy(np.float64))
    return Band(_least(ill, error), 1 - _least(well, error)).reaching(threshold)


def stored_band(known: Sequence[float] | None, *, threshold: float) -> Band:
    """Read the band of a model card; a model without one answers everything, by its operating point."""
    return Band(*(known or (threshold, threshold))).reaching(threshold)


def count_answers(table: pd.DataFrame, band: Band) -> pd.DataFrame:
    """Count the answers: one row for each class, one column for each answer."""
    answers = pd.Categorical(band.answer(table["probability"]), categories=list(ANSWERS))
    return pd.crosstab(table["label"].to_numpy(), answers, dropna=False).reindex(
        index=[0, 1], columns=list(ANSWERS), fill_value=0
    )


def trade_off(validation: pd.DataFrame | None, table: pd.DataFrame, *, threshold: float) -> pd.DataFrame:
    """Compute coverage and accuracy of the answers as the error that bands are fitted to falls.

    Returns:
        For each `error`: `coverage`, `accuracy` of what was answered, and its interval `low`, `high` by
        the number of patients answered. Without `validation`, on which bands are fitted, no row.
    """
    rows = []
    for error in ERRORS:
        if validation is None:
            break
        answers = fit_band(validation, error=error, threshold=threshold).answer(table["probability"])
        answered = answers != "look closer"
        right = (answers == "pneumonia") == (table["label"] == 1)
        accuracy = float(right[answered].mean()) if answered.any() else np.nan
        patients = int(table.loc[answered, "patient"].nunique())
        rows.append((error, float(answered.mean()), accuracy, *wilson(accuracy * patients, patients)))
    return pd.DataFrame(rows, columns=["error", "coverage", "accuracy", "low", "high"], dtype=float)


def _least(conformity: Vector, error: float) -> float:
    """Find the conformity that all but `error` of a class reach; 0 (all is possible) where it is too small to tell."""
    rank = int(np.floor((len(conformity) + 1) * error))
    return float(conformity[rank - 1]) if rank else 0.0
