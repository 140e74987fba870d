"""Metrics as pure functions of logits and labels; what is undefined is NaN, never 0."""

import math

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_stat_scores

NAMES = ("accuracy", "auroc", "average_precision", "sensitivity", "specificity", "balanced_accuracy")


def classification_metrics(logits: Tensor, labels: Tensor, *, threshold: float = 0.5) -> dict[str, float]:
    """Compute the metrics of `NAMES`.

    Args:
        logits: (N,) for PNEUMONIA.
        labels: (N,) of 0 and 1.
        threshold: the probability from which an image is called PNEUMONIA.

    Returns:
        One number for each name; NaN where a class is missing or a logit is not finite.
    """
    if not len(logits) or not bool(torch.isfinite(logits).all()):
        return dict.fromkeys(NAMES, math.nan)
    scores = torch.sigmoid(logits.double())  # in single precision, certain logits would tie
    truth = labels.long()
    called = (scores >= threshold).long()
    tp, fp, tn, fn, _ = binary_stat_scores(called, truth).tolist()
    sensitivity, specificity = _share(tp, tp + fn), _share(tn, tn + fp)
    both = tp + fn > 0 and tn + fp > 0
    return {
        "accuracy": _share(tp + tn, len(truth)),
        "auroc": float(binary_auroc(scores, truth)) if both else math.nan,
        "average_precision": float(binary_average_precision(scores, truth)) if both else math.nan,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": (sensitivity + specificity) / 2,
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
