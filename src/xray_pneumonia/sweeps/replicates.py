"""Replicates: one trial as the mean over seeds and folds, and when to stop replicating a hopeless one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from xray_pneumonia.sweeps.settings import SweepSettings

MARGIN = 2.0  # standard errors that a trial may lie behind before it is given up


@dataclass(frozen=True)
class Replicate:
    """One training of a trial: the keys that it sets."""

    name: str
    values: dict[str, Any]


def replicates(settings: SweepSettings) -> list[Replicate]:
    """List the trainings of a trial: every seed on every fold; none where it is a single run."""
    if not settings.seeds and not settings.folds:
        return []
    listed = []
    for seed in settings.seeds or [None]:  # type: ignore[list-item]
        for fold in range(settings.folds or 1):
            values: dict[str, Any] = {} if seed is None else {"seed": seed}
            values |= {"data.folds": settings.folds, "data.fold": fold} if settings.folds else {}
            parts = [f"seed {seed}"] * (seed is not None) + [f"fold {fold}"] * bool(settings.folds)
            listed.append(Replicate(" ".join(parts), values))
    return listed


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation, which is NaN for one value."""
    return fmean(values), stdev(values) if len(values) > 1 else math.nan


def hopeless(values: Sequence[float], *, total: int, others: Sequence[tuple[float, float]], maximize: bool) -> bool:
    """Tell whether the remaining replicates would hardly make a trial the best one.

    It is given up when its mean so far lies more than `MARGIN` standard errors behind the best mean. The
    spread comes from the trials that are complete, pooled, for that of two or three values is a guess.

    Args:
        values: of the replicates so far.
        total: replicates of a whole trial.
        others: mean and standard deviation of the trials that are complete.
        maximize: whether more is better.
    """
    spreads = [sd for _, sd in others if math.isfinite(sd)]
    if not values or not spreads:
        return False
    pooled = math.sqrt(fmean(sd**2 for sd in spreads))
    sign = 1 if maximize else -1
    best = max(sign * mean for mean, _ in others)
    error = pooled * math.sqrt(1 / len(values) + 1 / total)
    return sign * fmean(values) < best - MARGIN * error
