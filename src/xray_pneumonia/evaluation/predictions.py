"""The predictions: a table with one row for each record, from which every figure can be redrawn."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

COLUMNS = ("id", "patient", "subtype", "label", "logit", "probability")


def tabulate(records: pd.DataFrame, index: npt.NDArray[np.int64], logits: npt.NDArray[np.float64]) -> pd.DataFrame:
    """Join logits with what is known of their records.

    Args:
        records: the table of records.
        index: (N,) row numbers in `records`.
        logits: (N,) for PNEUMONIA.

    Returns:
        The columns of `COLUMNS`; its index is that of `records`. Probabilities are uncalibrated.
    """
    table = records.loc[index, ["id", "patient", "subtype", "label"]].copy()
    table["logit"] = logits
    table["probability"] = 1 / (1 + np.exp(-logits))
    return table


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV in UTF-8 that no spreadsheet takes for formulas."""
    safe = table.copy()
    for column in safe.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in safe.dtypes]]:
        risky = safe[column].str.startswith(("=", "+", "-", "@", "\t", "\r"))
        safe[column] = safe[column].where(~risky, "'" + safe[column])
    safe.to_csv(path, index=False, encoding="utf-8", float_format="%.9g")
