"""Assesses subgroups of a table of predictions, since a good average can hide a bad part."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from xray_pneumonia.evaluation.intervals import Estimate, bootstrap

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
