"""Reads and writes predictions: a table with one row for each record, from which every figure can be redrawn."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_pneumonia.errors import InputError
from xray_pneumonia.types import CLASSES, Classes, csv_safe

COLUMNS = ("id", "patient", "subtype", "label", "logit", "probability")


def tabulate(records: pd.DataFrame, index: npt.NDArray[np.int64], logits: npt.NDArray[np.float64]) -> pd.DataFrame:
    """Join logits (N,) with their records, the rows `index` (N,); probabilities are uncalibrated.

    Returns:
        The columns of `COLUMNS`; its index is that of `records`.
    """
    table = records.loc[index, ["id", "patient", "subtype", "label"]].copy()
    table["logit"] = logits
    table["probability"] = 1 / (1 + np.exp(-logits))
    return table


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV in UTF-8 that no spreadsheet takes for formulas."""
    safe = table.map(lambda cell: csv_safe(cell) if isinstance(cell, str) else cell)
    safe.to_csv(path, index=False, encoding="utf-8", float_format="%.9g")


def read(path: Path) -> pd.DataFrame:
    """Read what `write` wrote.

    Raises:
        InputError: the file is missing or holds something else, an image twice or another label than 0 and 1.
    """
    try:
        table = pd.read_csv(path, dtype={"id": str, "patient": str, "subtype": str}, keep_default_na=False)
        table[["logit", "probability"]] = table[["logit", "probability"]].astype(float)
        if not table["label"].isin([0, 1]).all() or table["id"].duplicated().any():
            raise ValueError("an image stands there twice, or has another label than 0 and 1")
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: is no table of predictions ({', '.join(COLUMNS)}): {error}") from error
    for column in ("id", "patient", "subtype"):
        table[column] = table[column].str.replace(r"^'(?=[=+\-@\t\r])", "", regex=True)
    return table


def require_usable(table: pd.DataFrame, *, name: str, classes: Classes = CLASSES) -> None:
    """Refuse a table on which figures would be undefined or wrong.

    Raises:
        InputError: it is empty, a class is missing, or a logit is not a finite number.
    """
    if table["label"].nunique() < 2:
        counts = table["label"].value_counts().to_dict()
        raise InputError(
            f"{name}: needs images of both classes, found {counts.get(0, 0)} {classes[0]} and {counts.get(1, 0)} "
            f"{classes[1]}; "
            "add the missing class, or read single images with `xray predict`"
        )
    broken = table[~np.isfinite(table["logit"])]
    if len(broken):
        raise InputError(
            f"{name}: the model gives no finite number for {len(broken)} images, the first is "
            f"{broken['id'].iloc[0]}; its weights are damaged: train it again, or evaluate another run"
        )
