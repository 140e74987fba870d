"""Chooses the operating point: the probability from which an image is called PNEUMONIA, by a named policy."""

import re

import numpy as np
import pandas as pd
from scipy.special import betainc, expit, logit

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.abstention import design_effect
from xray_pneumonia.types import Vector

POLICIES = (
    "youden, middle, sensitivity:0.95, specificity:0.95 (at least so much on validation; sensitivity:0.95@95% at least "
    "so much of all such patients, with 95 % confidence) or cost:5 (a missed pneumonia costs so many false alarms; "
    "cost:5@30% where 30 % are ill, else as many as on validation)"
)
POLICY = re.compile(
    r"^(?:(youden|middle)|(sensitivity|specificity)(?:>=|:)(0?\.\d+|0|1|1\.0)(?:@(\d\d(?:\.\d+)?)%)?"
    r"|(cost)[=:](\d+(?:\.\d+)?)(?:@(\d\d?(?:\.\d+)?)%)?)$"
)
CERTAIN = 1e-9  # the least doubt that `middle` assumes of a model


def parse_policy(policy: str) -> tuple[str, float, float | None]:
    """Split a policy into name, number and what follows `@`, as a share.

    `:` stands for `>=` and `=`, which shell and Hydra take for themselves.

    Raises:
        InputError: there is no such policy.
    """
    match = POLICY.match(policy.replace(" ", ""))
    if match is None:
        raise InputError(f"evaluation.operating_point={policy!r}: no such policy; write {POLICIES}")
    name, rate, bound, confidence, cost, price, prevalence = match.groups()
    at = confidence or prevalence
    return (name or rate or cost), float(bound or price or 0), float(at) / 100 if at else None


def choose_threshold(table: pd.DataFrame, *, policy: str) -> float:
    """Choose a threshold on calibrated predictions on validation, never on the split that is assessed.

    `youden` takes the most sensitivity + specificity (Youden, Cancer 1950); `middle` the probability halfway between
    the classes' mean logits, where a linear discriminant of two equally wide and equally frequent classes has it
    (Fisher, Annals of Eugenics 1936); `sensitivity>=x` the most specificity that keeps it; `specificity>=x` the other
    way round; `cost=c` the least false alarms + c x misses. Every image moves `middle` a little and none much; the
    others depend on the few images at the edge of a class. Their candidates lie halfway between neighbouring
    probabilities, so that no image lies on the threshold; of equally good ones the one with the widest gap is taken.

    Raises:
        InputError: there is no such policy, a class is missing, or has too few images for the confidence asked for.
    """
    name, bound, at = parse_policy(policy)
    ill = np.sort(table.loc[table["label"] == 1, "probability"].to_numpy(np.float64))
    well = np.sort(table.loc[table["label"] == 0, "probability"].to_numpy(np.float64))
    if not (len(ill) and len(well)):
        raise InputError("an operating point needs images of both classes to be chosen on")
    if name == "middle":
        return _middle(well, ill)
    scores = np.unique(np.concatenate([[0.0], ill, well, [1.0]]))
    thresholds = np.concatenate([[0.0], (scores[1:] + scores[:-1]) / 2])
    gaps = np.concatenate([[0.0], np.diff(scores)])
    found = len(ill) - np.searchsorted(ill, thresholds, side="left")  # counts, which no rounding changes
    cleared = np.searchsorted(well, thresholds, side="left")
    if name == "youden":
        merit = found / len(ill) + cleared / len(well)
    elif name == "cost":
        share = len(ill) / (len(ill) + len(well)) if at is None else at
        merit = -(bound * share * (1 - found / len(ill)) + (1 - share) * (1 - cleared / len(well)))
    else:
        kept, gained = (found, cleared) if name == "sensitivity" else (cleared, found)
        merit = np.where(kept >= _least_hits(table, policy), gained, -1)
    best = np.flatnonzero(merit >= merit.max() - 1e-12)
    return float(thresholds[best[np.argmax(gaps[best])]])


def require_enough(policy: str, *, ill: int, well: int) -> None:
    """Refuse a policy with a confidence that so many patients of each class cannot give.

    Raises:
        InputError: there are too few.
    """
    name, bound, confidence = parse_policy(policy)
    if name in {"sensitivity", "specificity"} and confidence is not None:
        count, kind = (ill, "ill") if name == "sensitivity" else (well, "healthy")
        _tolerance(count, bound, confidence, policy=policy, kind=f"{kind} patients")


def _least_hits(table: pd.DataFrame, policy: str) -> int:
    """Count the images of a class that must be called rightly to keep a rate, or to keep it with a confidence."""
    name, bound, confidence = parse_policy(policy)
    part = table[table["label"] == (name == "sensitivity")]
    least = int(np.ceil(bound * len(part) - 1e-9))
    if confidence is None or not least:
        return least
    edge = np.sort(part["probability"])[len(part) - least if name == "sensitivity" else least - 1]
    missed = part["probability"] < edge if name == "sensitivity" else part["probability"] > edge
    effective = len(part) / design_effect(missed.to_numpy(), part.get("patient", pd.Series(range(len(part)))))
    return len(part) - _tolerance(effective, bound, confidence, policy=policy, kind="images, by patient,")


def _tolerance(count: float, bound: float, confidence: float, *, policy: str, kind: str) -> int:
    """Count the misses among `count` that still leave a rate above `bound` with a confidence (Wilks, 1941).

    Raises:
        InputError: even none is too many.
    """
    misses = np.arange(int(count))
    allowed = betainc(count - misses, misses + 1, bound) <= 1 - confidence  # P(so few misses, were the rate the bound)
    if not allowed.size or not allowed[0]:
        least = int(np.ceil(np.log(1 - confidence) / np.log(bound))) if 0 < bound < 1 else np.inf
        raise InputError(
            f"evaluation.operating_point={policy}: not possible with {count:.0f} {kind} in validation; it takes "
            f"{least:g} that are all called rightly; ask for less, or leave out @"
        )
    return int(misses[allowed].max())


def _middle(well: Vector, ill: Vector) -> float:
    means = [logit(np.clip(probability, CERTAIN, 1 - CERTAIN)).mean() for probability in (well, ill)]
    return float(expit(np.mean(means)))
