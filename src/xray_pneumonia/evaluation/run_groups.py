"""Groups runs that differ in seed or fold alone, and tables the groups: what differs, mean and sd of metrics."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import numpy as np
import pandas as pd

from xray_pneumonia.types import CLASSES

REPEATED = ("seed", "data.seed", "data.fold")  # in which the runs of a group may differ
RECORDS = "records"  # what tells configs apart whose data keys are the same and whose images are not
# Where and under which name a run happened, which does not define it.
CIRCUMSTANCES = ("home", "tracking.", "data.cache_dir", "data.root", "data/", "model/parameters", "trainer.threads")


@dataclass(frozen=True)
class Entry:
    """One run: the leaves of its config, its metrics by name and the fingerprint of its images, where it is known."""

    run_id: str
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    records: str = ""


@dataclass(frozen=True)
class Group:
    """Runs of one config that differ in seed and fold alone."""

    entries: tuple[Entry, ...]

    def mean_and_sd(self, metric: str) -> tuple[float, float]:
        """Compute mean and sample standard deviation of a metric; NaN where there are too few runs."""
        return mean_and_sd([entry.metrics[metric] for entry in self.entries if metric in entry.metrics])


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation; NaN where there are too few values."""
    return fmean(values) if values else math.nan, stdev(values) if len(values) > 1 else math.nan


def tell_images_apart(entries: Sequence[Entry]) -> list[Entry]:
    """Give runs that saw other images than runs of the same data keys a parameter `records`: they are no repeats."""
    seen: dict[str, set[str]] = {}
    cuts = [str([pair for pair in _whole(one, ("data.seed",)) if pair[0].startswith("data.")]) for one in entries]
    for one, cut in zip(entries, cuts, strict=True):
        seen.setdefault(cut, set()).update({one.records} - {""})
    return [
        replace(one, params={**one.params, RECORDS: one.records[:8]}) if one.records and len(seen[cut]) > 1 else one
        for one, cut in zip(entries, cuts, strict=True)
    ]


def drop_reruns(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Separate the last run of each config, seed and fold from those before it, which tell nothing of the spread."""
    last = {str(_whole(one)): one.run_id for one in entries}
    kept = [one for one in entries if last[str(_whole(one))] == one.run_id]
    return kept, [one for one in entries if one not in kept]


def _whole(one: Entry, besides: Sequence[str] = ()) -> list[tuple[str, str]]:
    return sorted(identity(one.params, besides=besides).items())


def group(entries: Sequence[Entry], *, best_by: str, maximize: bool) -> list[Group]:
    """Group repeats of one config, the group with the best mean of `best_by` first."""
    found: dict[tuple[tuple[str, str], ...], list[Entry]] = {}
    for entry in entries:
        found.setdefault(tuple(sorted(identity(entry.params).items())), []).append(entry)
    groups = [Group(tuple(members)) for members in found.values()]
    sign = -1 if maximize else 1
    return sorted(groups, key=lambda one: np.nan_to_num(sign * one.mean_and_sd(best_by)[0], nan=math.inf))


def identity(params: Mapping[str, str], *, besides: Sequence[str] = REPEATED) -> dict[str, str]:
    """Select what defines a config, of the leaves of a run's config; `besides` names keys that do not count."""
    return {key: value for key, value in params.items() if key not in besides and not key.startswith(CIRCUMSTANCES)}


def differences(groups: Sequence[Group]) -> pd.DataFrame:
    """Table what differs between configs: a row for each group, a column for each key.

    A key that some configs lack, such as a momentum, counts where those that have it disagree. Below the choice of a
    group (`model`) its keys (`model.width`) count only where they differ between configs of the same choice.
    """
    configs = [identity(one.entries[0].params) for one in groups]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    varying = [key for key in keys if _varies(key, configs)]
    rows = [{key: config.get(key, "-") for key in varying} for config in configs]
    return pd.DataFrame(rows, index=range(1, len(groups) + 1))


def _varies(key: str, configs: Sequence[Mapping[str, str]]) -> bool:
    values: dict[str, set[str]] = {}
    for config in configs:
        if key in config:
            values.setdefault(config.get(key.partition(".")[0], "") if "." in key else "", set()).add(config[key])
    return any(len(several) > 1 for several in values.values())


def questions(entries: Sequence[Entry]) -> list[str]:
    """List the questions that runs answer; those from before there was a choice tell the public classes apart."""
    known = [[entry.params.get(f"data.{side}") for side in ("positive", "negative")] for entry in entries]
    public = [str([name]) for name in reversed(CLASSES)]
    return sorted({" against ".join(one or name for one, name in zip(each, public, strict=True)) for each in known})


def tabulate(groups: Sequence[Group], metrics: Mapping[str, str]) -> pd.DataFrame:
    """Table the groups: how many runs, what differs, mean and standard deviation of `metrics` (heading to name)."""
    table = differences(groups)
    table.insert(0, "runs", [len(one.entries) for one in groups])
    for heading, metric in metrics.items():
        table[heading], table[f"{heading} sd"] = zip(*(one.mean_and_sd(metric) for one in groups), strict=True)
    table.index.name = "group"
    return table
