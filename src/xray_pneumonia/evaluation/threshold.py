"""Chooses the operating point: the probability from which an image is called PNEUMONIA, by a named policy."""

import re

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from xray_pneumonia.errors import InputError
from xray_pneumonia.types import Vector

POLICIES = (
    "youden, middle, sensitivity:0.95, specificity:0.95 (at least so much) or cost:5 (a missed pneumonia costs so many "
    "false alarms)"
)
POLICY = re.compile(
    r"^(?:(youden|middle)|(sensitivity|specificity)(?:>=|:)(0?\.\d+|0|1|1\.0)|(cost)[=:](\d+(?:\.\d+)?))$"
)
CERTAIN = 1e-9  # the least doubt that `middle` assumes of a model


def parse_policy(policy: str) -> tuple[str, float]:
    """Split a policy into name and number; `:` stands for `>=` and `=`, which shell and Hydra take for themselves.

    Raises:
        InputError: there is no such policy.
    """
    match = POLICY.match(policy.replace(" ", ""))
    if match is None:
        raise InputError(f"evaluation.operating_point={policy!r}: no such policy; write {POLICIES}")
    name, rate, bound, cost, price = match.groups()
    return (name or rate or cost), float(bound or price or 0)


def choose_threshold(table: pd.DataFrame, *, policy: str) -> float:
    """Choose a threshold on calibrated predictions on validation, never on the split that is assessed.

    `youden` takes the most sensitivity + specificity (Youden, Cancer 1950); `middle` the probability halfway between
    the classes' mean logits, where a linear discriminant of two equally wide and equally frequent classes has it
    (Fisher, Annals of Eugenics 1936); `sensitivity>=x` the most specificity that keeps it; `specificity>=x` the other
    way round; `cost=c` the least false alarms + c x misses. Every image moves `middle` a little and none much; the
    others depend on the few images at the edge of a class. Their candidates lie halfway between neighbouring
    probabilities, so that no image lies on the threshold; of equally good ones the one with the widest gap is taken.

    Raises:
        InputError: there is no such policy, or a class is missing.
    """
    name, bound = parse_policy(policy)
    ill = np.sort(table.loc[table["label"] == 1, "probability"].to_numpy(np.float64))
    well = np.sort(table.loc[table["label"] == 0, "probability"].to_numpy(np.float64))
    if not (len(ill) and len(well)):
        raise InputError("an operating point needs images of both classes to be chosen on")
    if name == "middle":
        return _middle(well, ill)
    scores = np.unique(np.concatenate([[0.0], ill, well, [1.0]]))
    thresholds = np.concatenate([[0.0], (scores[1:] + scores[:-1]) / 2])
    gaps = np.concatenate([[0.0], np.diff(scores)])
    sensitivity = 1 - np.searchsorted(ill, thresholds, side="left") / len(ill)
    specificity = np.searchsorted(well, thresholds, side="left") / len(well)
    if name == "youden":
        merit = sensitivity + specificity
    elif name == "cost":
        merit = -(bound * (1 - sensitivity) * len(ill) + (1 - specificity) * len(well))
    else:
        kept, gained = (sensitivity, specificity) if name == "sensitivity" else (specificity, sensitivity)
        merit = np.where(kept >= bound, gained, -1.0)
    best = np.flatnonzero(merit >= merit.max() - 1e-12)
    return float(thresholds[best[np.argmax(gaps[best])]])


def _middle(well: Vector, ill: Vector) -> float:
    means = [logit(np.clip(probability, CERTAIN, 1 - CERTAIN)).mean() for probability in (well, ill)]
    return float(expit(np.mean(means)))
