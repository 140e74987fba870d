"""The config group `sweep`: what is searched, how, and for how long."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Len

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.metrics import Monitor
from xray_pneumonia.types import Count, Seed, Whole

# What a trial can be judged by: the best epoch's figures, the size of the net, the seconds of an epoch.
Objective = Monitor | Literal["model/parameters", "time/epoch_seconds"]
Direction = Literal["max", "min"]


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """The config group `sweep`.

    Args:
        name: of the study; a rerun with the same name goes on. Null makes one from the command.
        space: a range for each key; the command line adds to it and overrides it.
        first: configurations to try before any others, each a mapping from keys to values.
        n_trials: completed or pruned trials to reach; null takes every point of a grid, or 20.
        sampler: `auto` is `grid` where the space has finitely many points and no budget, else `tpe`.
        seed: of the sampler.
        objectives: metrics with `max` or `min`; null takes `monitor`.
        pruner: ends trials that do worse than others did at the same epoch.
        prune_after_trials: trials that must be complete before the first is pruned (median alone).
        prune_after_epochs: epochs that every trial may run.
        seeds: train every trial once for each seed; its value is the mean.
        folds: train every trial once for each of so many patient-grouped folds; its value is the mean.
        max_failures: failed trials that a command bears; null bears all.
        parallel: trials handed to the launcher at once; null asks the launcher.
        storage: of the study; null takes XRAY_SWEEP_STORAGE, else `sweeps.db` in `home`.
        stale_after: seconds without a sign of life after which a trial on another machine counts as dead.
        trial: filled in by the sweeper for each trial.
    """

    name: str | None
    space: dict[str, Any]
    first: list[dict[str, Any]]
    n_trials: Count | None
    sampler: Literal["auto", "tpe", "random", "grid", "cmaes", "qmc"]
    seed: Seed
    objectives: Annotated[dict[Objective, Direction], Len(1)] | None
    pruner: Literal["none", "median", "halving", "hyperband"]
    prune_after_trials: Whole
    prune_after_epochs: Count
    seeds: Annotated[list[Seed], Len(1)] | None
    folds: Count | None
    max_failures: Whole | None
    parallel: Count | None
    storage: str | None
    stale_after: Count
    trial: dict[str, Any] | None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if self.objectives and len(self.objectives) > 1 and self.pruner != "none":
            raise InputError(
                f"sweep.pruner={self.pruner}: trials with {len(self.objectives)} objectives have no order to prune by; "
                "set sweep.pruner=none"
            )
        if self.objectives and len(self.objectives) > 1 and self.sampler == "cmaes":
            raise InputError("sweep.sampler=cmaes: knows one objective; use tpe, random or qmc")
        if self.seeds and len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"sweep.seeds={self.seeds}: the same seed twice tells nothing new")
        if self.folds == 1:
            raise InputError("sweep.folds=1: needs at least 2 folds")
