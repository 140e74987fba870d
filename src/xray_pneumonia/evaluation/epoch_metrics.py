"""Metrics as pure functions of logits and labels; what is undefined is NaN, never 0."""

import math

import numpy as np
import numpy.typing as npt

NAMES = ("accuracy", "auroc", "average_precision", "sensitivity", "specificity", "balanced_accuracy")


def classification_metrics(
    logits: npt.NDArray[np.floating], labels: npt.NDArray[np.number], *, threshold: float = 0.5
) -> dict[str, float]:
    """Compute the metrics of `NAMES`.

    Ranks are those of the logits: a sigmoid would make ties of certain images, and break true ties.

    Args:
        logits: (N,) for PNEUMONIA.
        labels: (N,) of 0 and 1.
        threshold: the probability from which an image is called PNEUMONIA.

    Returns:
        One number for each name; NaN where a class is missing or a logit is not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # half a second to import; no step needs it

    if not len(logits) or not np.isfinite(logits).all():
        return dict.fromkeys(NAMES, math.nan)
    truth = labels > 0.5
    called = logits.astype(np.float64) >= math.log(threshold / (1 - threshold))
    sensitivity = float(called[truth].mean()) if truth.any() else math.nan
    specificity = float(1 - called[~truth].mean()) if not truth.all() else math.nan
    both = bool(truth.any() and not truth.all())
    return {
        "accuracy": float((called == truth).mean()),
        "auroc": float(roc_auc_score(truth, logits)) if both else math.nan,
        "average_precision": float(average_precision_score(truth, logits)) if both else math.nan,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": (sensitivity + specificity) / 2,
    }
