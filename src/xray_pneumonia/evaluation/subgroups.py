"""Assesses subgroups of a table of predictions, since a good average can hide a bad part."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_pneumonia.evaluation.abstention import Band
from xray_pneumonia.evaluation.intervals import Estimate, bootstrap, share

MOST_VALUES = 8  # a column with more is cut into quarters, or passed over when it holds no numbers
FEW = 20  # patients below which a part is marked
SHOWN = ("auroc", "sensitivity", "specificity", "accuracy")


@dataclass(frozen=True)
class Subgroup:
    """A part of the table, its counts, and its metrics with intervals."""

    column: str
    value: str
    images: int
    patients: int
    pneumonia: int
    metrics: dict[str, Estimate]

    @property
    def few(self) -> bool:
        """Whether too few patients are in it to tell it from the others."""
        return self.patients < FEW


def subgroups(
    table: pd.DataFrame, *, columns: list[str], threshold: float, replicates: int, seed: int
) -> list[Subgroup]:
    """Assess every part of a table of predictions by each of the columns of the records.

    A kind of pneumonia (`subtype`) is assessed against all images of label 0, so that AUROC has two classes.
    """
    found = []
    for column in columns:
        for value, part in _parts(table, column):
            estimates = bootstrap(part, threshold=threshold, replicates=replicates, seed=seed)
            metrics = {name: estimates[name] for name in SHOWN}
            sizes = len(part), int(part["patient"].nunique()), int(part["label"].sum())
            found.append(Subgroup(column, value, *sizes, metrics))
    return found


@dataclass(frozen=True)
class Answers:
    """What is answered in a part of the table: its counts, and the shares stopped by the gate, answered, and wrong.

    Answered is what lies outside of the margin and passes the gate; `stopped` is NaN without a gate, `error` is of the
    answers.
    """

    name: str
    images: int
    patients: int
    ill: float
    stopped: float
    answered: Estimate
    error: Estimate

    @property
    def few(self) -> bool:
        """Whether too few patients are answered to say how many answers are wrong."""
        return self.error.patients < FEW


def count_answered(table: pd.DataFrame, band: Band, parts: Mapping[str, npt.NDArray[np.bool_]]) -> list[Answers]:
    """Count the answers in parts (N,) of a table of calibrated predictions, with `gate_score` where there is a gate."""
    answer, score = band.answer(table["probability"]), table.get("gate_score", pd.Series(np.nan, table.index))
    given = pd.Series((answer != "look closer") & ~score.gt(1), table.index)
    wrong, found = (answer == "pneumonia") != table["label"].eq(1), []
    for name, rows in parts.items():
        part, answered = table[rows], given & rows
        counts = name, len(part), int(part["patient"].nunique()), float(part["label"].mean())
        stopped = np.nan if score.isna().all() else float(score[rows].gt(1).mean())
        shares = share(given[rows], part["patient"]), share(wrong[answered], table["patient"][answered])
        found.append(Answers(*counts, stopped, *shares))
    return found


def _parts(table: pd.DataFrame, column: str) -> Iterator[tuple[str, pd.DataFrame]]:
    if column == "subtype":
        normal = table[table["label"] == 0]
        against = " or ".join(sorted(set(normal["subtype"])))
        for kind, part in table[table["label"] == 1].groupby("subtype"):
            yield f"{kind} against {against}", pd.concat([part, normal])
        return
    values = table[column]
    if values.nunique() > MOST_VALUES:
        if not pd.api.types.is_numeric_dtype(values):
            return
        quarters = pd.qcut(values, 4, duplicates="drop")
        values = quarters.map(lambda cut: f"{cut.left:g} to {cut.right:g}")
    if values.nunique() > 1:
        for value, part in table.groupby(values, observed=True):
            yield str(value), part
