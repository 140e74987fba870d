"""Robustness: the same judgement of the same images, corrupted."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_pneumonia.evaluation.corruptions import KINDS, STRENGTHS, corrupt
from xray_pneumonia.evaluation.decision import Decision
from xray_pneumonia.evaluation.intervals import delong
from xray_pneumonia.evaluation.metrics import Vector, table_metrics

Gray = npt.NDArray[np.uint8]
CLEAN = "as it is"


def robustness(
    table: pd.DataFrame,
    images: Gray,
    decision: Decision,
    *,
    predict: Callable[[Gray], Vector],
    seed: int,
) -> pd.DataFrame:
    """Run images through every corruption at every strength and judge the answers.

    Args:
        table: predictions of the images.
        images: (N, H, W).
        decision: chosen on validation; it stays.
        predict: (N, H, W) -> raw logits (N,).
        seed: of the corruptions.

    Returns:
        One row for each kind and strength: `auroc` with DeLong's interval by patient (`low`, `high`),
        `sensitivity`, `specificity`, `balanced_accuracy`; the first row is the images as they are.
    """
    rows = [_row(CLEAN, 0, table, decision)]
    for kind in KINDS:
        for strength in STRENGTHS:
            logits = predict(corrupt(images, kind=kind, strength=strength, seed=seed))
            rows.append(_row(kind, strength, table.assign(logit=logits), decision))
    return pd.DataFrame(rows)


def sample(table: pd.DataFrame, *, images: int | None, seed: int) -> npt.NDArray[np.int64]:
    """Choose about so many rows, half of each class where that is possible, in their order; None takes all."""
    if images is None or images >= len(table):
        return np.arange(len(table))
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(table["label"] == label) for label in (0, 1)]
    chosen = [rng.permutation(part)[: max(2, images // 2)] for part in rows]
    return np.sort(np.concatenate(chosen))


def _row(kind: str, strength: int, table: pd.DataFrame, decision: Decision) -> dict[str, object]:
    judged = decision.calibration.apply(table)
    values = table_metrics(judged, threshold=decision.threshold)
    area = delong(judged["label"], judged["logit"], judged["patient"])
    names = ("sensitivity", "specificity", "balanced_accuracy")
    return {
        "kind": kind,
        "strength": strength,
        "auroc": area.value,
        "low": area.low,
        "high": area.high,
        **{name: values[name] for name in names},
    }
