"""Decides between the trainings of a trial whether the rest of them can still make it the best."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from xray_pneumonia.evaluation.intervals import t_quantile
from xray_pneumonia.evaluation.robust_score import Scales, pool, score


def is_hopeless(values: Mapping[str, float], *, others: Sequence[Mapping[str, float]], maximize: bool) -> bool:
    """Tell whether a trial lies so far behind the best one that its remaining replicates would hardly change that.

    It is compared with the best complete trial on the same seeds and folds, for some folds are harder than others.
    The spread of such differences comes from the complete trials, by Student's t on their degrees of freedom.

    Args:
        values: of the trial's replicates so far, by name.
        others: the same of each complete trial.
        maximize: whether more is better.
    """
    names = sorted(set.intersection(*(set(one) for one in others))) if others else []
    shared = [name for name in names if name in values]
    freedom = (len(others) - 1) * (len(names) - 1)
    if not shared or freedom < 1:
        return False
    table = np.array([[one[name] for name in names] for one in others])  # (trials, replicates)
    residuals = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    sign = 1 if maximize else -1
    best = others[int(np.argmax(sign * table.mean(axis=1)))]
    behind = sign * fmean(best[name] - values[name] for name in shared)
    error = math.sqrt(float(np.square(residuals).sum()) / freedom * 2 / len(shared))
    return bool(behind > t_quantile(freedom) * error)


def is_out_of_reach(
    parts: Mapping[str, Mapping[str, float]], others: Sequence[Mapping[str, Mapping[str, float]]], *, scales: Scales
) -> bool:
    """Tell whether a score would stay below the best, even if each training to come went as well as it ever did.

    Args:
        parts: of `robust/score`, of the trial's trainings so far, by the training's name.
        others: the same of each complete trial.
        scales: of the parts.
    """
    known = [one for one in others if set(parts) <= set(one)]
    if not known:
        return False
    to_come = {name for one in known for name in one} - set(parts)
    best = [max((one[name] for one in known if name in one), key=lambda each: score(each, scales)) for name in to_come]
    reachable = score(pool([*parts.values(), *best]), scales)
    return reachable < max(score(pool(list(one.values())), scales) for one in known)
