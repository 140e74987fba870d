"""Tests two groups of runs, and says what the p-value is about: two models, or two configs over seeds or folds."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtr

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.comparison import Difference, answers, compare, holm, unless_few
from xray_pneumonia.evaluation.intervals import Estimate, replicate, t_quantile
from xray_pneumonia.evaluation.metrics import WeightedMetrics, table_metrics
from xray_pneumonia.evaluation.selection_bias import Evaluated
from xray_pneumonia.types import Vector


@dataclass(frozen=True)
class Repeat(Evaluated):
    """One run of a group: its predictions, the split they are of (seed of the split, fold) and its training images."""

    split: tuple[str, str] = ("", "")
    trained_on: float = np.nan


@dataclass(frozen=True)
class GroupComparison:
    """The differences of two groups, what they are about, and the shared images and patients they rest on.

    `left_out` counts the images that only one of the groups was validated on.
    """

    about: str
    images: int
    patients: int
    left_out: int
    differences: list[Difference]


def compare_groups(
    first: Sequence[Repeat], second: Sequence[Repeat], *, names: Collection[str], replicates: int, seed: int
) -> GroupComparison:
    """Compare two groups on the images that both were validated on.

    Raises:
        InputError: there are none.
    """
    everything = pd.concat([run.table["id"] for run in (*first, *second)]).nunique()
    splits = sorted({one.split for one in first} & {one.split for one in second})
    if splits:
        first, second = ([one for one in group if one.split in splits] for group in (first, second))
    folds = [[[one for one in group if one.split == split] for group in (first, second)] for split in splits]
    folds = [shared for fold in folds if len((shared := _share(fold))[0][0].table)] if len(folds) > 1 else []
    groups = _share([first, second]) if len(folds) < 2 else [[run for fold in folds for run in fold[0]]]
    rows = pd.concat([run.table for run in groups[0]])
    if rows.empty:
        raise InputError("pair: the two groups were validated on different images, so nothing can be paired")
    counts = rows["id"].nunique(), rows["patient"].nunique()
    if len(folds) > 1:
        about = f"two configs, over {len(folds)} folds (corrected t, Nadeau and Bengio 2003)"
        given = [pd.concat([_mean(fold[side]) for fold in folds]) for side in (0, 1)]
        differences = [unless_few(_over_folds(name, folds, counts), *given) for name in names]
    elif len(first) == len(second) == 1:
        about = "these two models, not how they were trained (for that, train several seeds of each)"
        tables, points = zip(*((run.table, run.threshold) for group in groups for run in group), strict=True)
        differences = compare(*tables, thresholds=points, replicates=replicates, seed=seed, names=names)
    else:
        about = f"two configs, over {len(first)} and {len(second)} seeds and the patients"
        found = _over_seeds(groups, names, replicates=replicates, seed=seed)
        differences = [unless_few(one, *map(_mean, groups)) for one in found]
    return GroupComparison(about, *counts, int(everything - counts[0]), holm(differences))


def _share(groups: Sequence[Sequence[Repeat]]) -> list[list[Repeat]]:
    """Restrict all runs to the images that each of them predicted, in one order."""
    ids = set.intersection(*(set(run.table["id"]) for group in groups for run in group))
    return [
        [
            Repeat(
                run.table[run.table["id"].isin(ids)].sort_values("id", ignore_index=True),
                run.threshold,
                run.split,
                run.trained_on,
            )
            for run in group
        ]
        for group in groups
    ]


def _mean(runs: Sequence[Repeat]) -> pd.DataFrame:
    return answers([run.table for run in runs], [run.threshold for run in runs])


def _over_folds(name: str, folds: Sequence[Sequence[Sequence[Repeat]]], counts: tuple[int, int]) -> Difference:
    """Test the mean difference over folds; its variance counts the training images that folds share.

    That is the corrected resampled t-test of Nadeau and Bengio (Machine Learning 2003). Seeds are averaged per fold.
    """
    values = np.array(
        [
            [np.mean([table_metrics(r.table, threshold=r.threshold)[name] for r in runs]) for runs in fold]
            for fold in folds
        ]
    )
    gaps, k = values[:, 0] - values[:, 1], len(folds)
    tested = [len(fold[0][0].table) for fold in folds]
    trained = [fold[0][0].trained_on for fold in folds]
    share = np.where(np.isfinite(trained), np.array(tested) / trained, 1 / (k - 1)).mean()
    error = float(np.sqrt(gaps.var(ddof=1) * (1 / k + share)))
    first, second = values.mean(axis=0)
    return _t_test(name, (float(first), float(second)), error, k - 1, counts, "corrected t over folds")


def _over_seeds(
    groups: Sequence[Sequence[Repeat]], names: Collection[str], *, replicates: int, seed: int
) -> list[Difference]:
    """Test the difference of means over seeds; both the patients and the seeds are drawn at random.

    The variance over patients comes from resampling them, that over seeds from the runs, pooled over both groups;
    degrees of freedom after Satterthwaite (multi-reader, multi-case: Obuchowski and Rockette 1995).
    """
    metrics = [[WeightedMetrics.of(run.table, threshold=run.threshold) for run in group] for group in groups]
    once = [[one.once() for one in group] for group in metrics]
    drawn = [[replicate(one, replicates=replicates, seed=seed) for one in group] for group in metrics]
    fewest = int(groups[0][0].table.groupby("label")["patient"].nunique().min())
    differences = []
    for name in names:
        means = [float(np.mean([values[name] for values in group])) for group in once]
        samples: Vector = np.subtract(*(np.mean([values[name] for values in group], axis=0) for group in drawn))
        freedom = sum(len(group) - 1 for group in once)
        residuals = [values[name] - mean for group, mean in zip(once, means, strict=True) for values in group]
        seeds = float(np.square(residuals).sum()) / freedom * sum(1 / len(group) for group in once)
        patients = float(np.nanvar(samples))
        df = (seeds + patients) ** 2 / (seeds**2 / freedom + patients**2 / max(1, fewest - 1) + 1e-300)
        counts = metrics[0][0].behind[name]
        error = float(np.sqrt(seeds + patients))
        differences.append(
            _t_test(name, (means[0], means[1]), error, max(1.0, df), counts, "t over seeds and patients")
        )
    return differences


def _t_test(
    name: str, values: tuple[float, float], error: float, freedom: float, counts: tuple[int, int], test: str
) -> Difference:
    gap = values[0] - values[1]
    if not error > 0:
        return Difference(
            name, *values, Estimate(gap, np.nan, np.nan, "does not vary", *counts), np.nan, "none: no spread"
        )
    half = t_quantile(freedom) * error
    estimate = Estimate(gap, gap - half, gap + half, test, *counts)
    return Difference(name, *values, estimate, 2 * float(stdtr(freedom, -abs(gap) / error)), test)
