"""Runs side by side: repeats grouped, what differs between their configs as columns, figures as mean and sd."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
import pandas as pd

# Repeats of a run differ in these; they make a group.
REPEATED = ("seed", "data.seed", "data.fold")
# Where and under which name a run happened says nothing about what it is.
CIRCUMSTANCES = ("home", "tracking.", "data.cache_dir", "model/parameters", "trainer.threads", "data.root")


@dataclass(frozen=True)
class Entry:
    """One run: the leaves of its config, and its figures by name."""

    run_id: str
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Group:
    """Runs of one config that differ in seed and fold alone."""

    entries: tuple[Entry, ...]

    @property
    def params(self) -> dict[str, str]:
        """The config that they share."""
        return _identity(self.entries[0])

    def figure(self, metric: str) -> tuple[float, float]:
        """Give mean and sample standard deviation; NaN where there is nothing to take them of."""
        values = [entry.metrics[metric] for entry in self.entries if metric in entry.metrics]
        mean = fmean(values) if values else math.nan
        return mean, stdev(values) if len(values) > 1 else math.nan


def group(entries: Sequence[Entry], *, best_by: str, maximize: bool) -> list[Group]:
    """Group repeats of one config, the best group first.

    Args:
        entries: the runs.
        best_by: the metric that orders them.
        maximize: whether more of it is better.
    """
    found: dict[tuple[tuple[str, str], ...], list[Entry]] = {}
    for entry in entries:
        found.setdefault(tuple(sorted(_identity(entry).items())), []).append(entry)
    groups = [Group(tuple(members)) for members in found.values()]
    sign = -1 if maximize else 1
    return sorted(groups, key=lambda one: np.nan_to_num(sign * one.figure(best_by)[0], nan=math.inf))


def _identity(entry: Entry) -> dict[str, str]:
    return {
        key: value for key, value in entry.params.items() if key not in REPEATED and not key.startswith(CIRCUMSTANCES)
    }


def differences(groups: Sequence[Group]) -> pd.DataFrame:
    """Table what differs between configs: a row for each group, a column for each key.

    A key that some configs lack, such as a momentum, counts where those that have it disagree.
    """
    configs = [one.params for one in groups]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    varying = [key for key in keys if len({config[key] for config in configs if key in config}) > 1]
    rows = [{_short(key): _value(key, config.get(key, "-")) for key in varying} for config in configs]
    return pd.DataFrame(rows, index=range(1, len(groups) + 1))


def _short(key: str) -> str:
    return key.removesuffix("._target_")


def _value(key: str, value: str) -> str:
    return value.rpartition(".")[2] if key.endswith("_target_") else value


def tabulate(groups: Sequence[Group], metrics: Mapping[str, str]) -> pd.DataFrame:
    """Table the groups: what differs, how many runs, the mean and standard deviation of each figure.

    Args:
        groups: of runs.
        metrics: the heading of a column to the name of its metric.
    """
    table = differences(groups)
    table.insert(0, "runs", [len(one.entries) for one in groups])
    for heading, metric in metrics.items():
        figures = [one.figure(metric) for one in groups]
        table[heading] = [mean for mean, _ in figures]
        table[f"{heading} sd"] = [sd for _, sd in figures]
    table.index.name = "group"
    return table


def pool(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Pool the predictions of a group: each image once, with the mean over the runs that saw it.

    Seeds predict the same images, which are averaged; folds predict different ones, which are joined.

    Args:
        tables: of predictions.
    """
    joined = pd.concat(tables, ignore_index=True)
    facts = {name: (name, "first") for name in ("patient", "subtype", "label")}
    pooled = joined.groupby("id", sort=True).agg(**facts, logit=("logit", "mean"), probability=("probability", "mean"))
    return pooled.reset_index()
