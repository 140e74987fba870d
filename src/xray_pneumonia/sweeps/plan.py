"""Plans a sweep from its config and command: space, budget, objectives, sampler, pruner, replicates, name."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
from omegaconf import DictConfig
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.metrics import monitor_mode
from xray_pneumonia.sweeps.settings import SweepSettings, read_settings
from xray_pneumonia.sweeps.space import Point, Space, read_space

BUDGET = 20  # trials, where a search sets none
# Where and how a sweep runs; none of it changes what a trial's value means.
LOGISTICS = ("home", "sweep", "workers", "tracking", "trainer.threads", "hydra")


@dataclass(frozen=True)
class Plan:
    """A sweep, read and checked."""

    settings: SweepSettings
    name: str  # of the study
    space: Space
    carried: tuple[str, ...]  # overrides that every trial takes over and that do not belong to the space
    kind: str  # of sampler
    points: tuple[Point, ...]  # to be tried before anything is sampled; all there is, for a grid
    n_trials: int  # completed or pruned, to reach
    objectives: dict[str, str]  # metrics with `max` or `min`; the first one is reported each epoch
    max_epochs: int  # of a trial

    @property
    def maximize(self) -> bool:
        """Whether more of the first objective is better."""
        return next(iter(self.objectives.values())) == "max"

    def describe(self) -> dict[str, Any]:
        """Describe what must not change while a study goes on."""
        s = self.settings
        robust = {"shifts": s.shifts, "scales": s.scales} if s.shifts or s.scales else {}  # older studies have none
        return {**self.space.describe(), "objectives": self.objectives, "seeds": s.seeds, "folds": s.folds, **robust}

    def shared(self) -> list[str]:
        """List the overrides that all trials share."""
        return [*self.carried, *(f"{key}={value}" for key, value in self.space.fixed.items())]


def logged_as(objective: str) -> str:
    """Name an objective as the run of a training logs it for its kept epoch."""
    return f"best/{objective.removeprefix('val/')}" if objective.startswith("val/") else objective


def read_plan(cfg: DictConfig, arguments: Sequence[str], *, choice: str) -> Plan:
    """Plan a multirun.

    Args:
        cfg: the composed config, without what is searched.
        arguments: the overrides, as typed.
        choice: which config of the group `sweep` was chosen.

    Raises:
        InputError: the space is empty or contradicts itself.
    """
    settings = read_settings(cfg.sweep)
    carried = tuple(argument for argument in arguments if _logistic(argument))
    space = read_space([argument for argument in arguments if argument not in carried], settings.space)
    _require_single(carried)
    if not space.parameters and not list_replicates(settings):
        raise InputError(
            "nothing to sweep over: give values (model=cnn,resnet), a range (optimizer.lr=interval(1e-4,1e-2)), "
            "a config (sweep=optimizer) or replicates (sweep.seeds=[1,2,3])"
        )
    _require_free(space, settings)
    keys = {parameter.key for parameter in space.parameters}
    if "data.fold" in keys and "data.folds" not in {*keys, *space.fixed} and cfg.data.folds is None:
        raise InputError("data.fold: means nothing without data.folds; say how many folds there are: data.folds=5")
    kind = settings.sampler
    if kind == "auto":
        kind = "grid" if space.fits(settings.n_trials) and not settings.first else "tpe"
    first = [space.require(point, origin=f"sweep.first[{i}]") for i, point in enumerate(settings.first)]
    points = space.grid() if kind == "grid" else []
    objectives = settings.objectives or {cfg.monitor: monitor_mode(cfg.monitor, cfg.mode)}
    budget = settings.n_trials or len(points) or BUDGET
    plan = Plan(
        settings=settings,
        name=settings.name or "",
        space=space,
        carried=carried,
        kind=kind,
        points=tuple(first + [point for point in points if point not in first]),
        n_trials=min(budget, len(points)) if kind == "grid" else budget,
        objectives={str(name): str(mode) for name, mode in objectives.items()},
        max_epochs=int(cfg.trainer.max_epochs),
    )
    return plan if settings.name else replace(plan, name=_name(plan, choice))


def build_sampler(settings: SweepSettings, *, kind: str, number: int) -> BaseSampler:
    """Make the sampler of one trial.

    Its seed depends on the trial's number, so a search that was interrupted does not repeat its first draws.

    Args:
        settings: the config group `sweep`.
        kind: the sampler, where the settings say `auto`.
        number: of the trial.
    """
    seed = (settings.seed * 1_000_003 + number) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if kind == "tpe":
            # Multivariate, for parameters depend on each other; grouped, for conditions leave some out; and
            # constant_liar keeps several workers from trying the same point at once.
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
        if kind == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        if kind == "qmc":  # all its points belong to one sequence, so one seed
            return optuna.samplers.QMCSampler(seed=settings.seed, scramble=True, warn_independent_sampling=False)
        return optuna.samplers.RandomSampler(seed=seed)


def build_pruner(settings: SweepSettings, *, max_epochs: int) -> BasePruner:
    """Make the pruner of trials that run `max_epochs`."""
    least = settings.prune_after_epochs
    if settings.pruner == "median":
        return optuna.pruners.MedianPruner(settings.prune_after_trials, n_warmup_steps=least)
    if settings.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=3)
    if settings.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=least, max_resource=max_epochs, reduction_factor=3)
    return optuna.pruners.NopPruner()


@dataclass(frozen=True)
class Replicate:
    """One training of a trial: the keys that it sets."""

    name: str
    values: dict[str, Any]


def list_replicates(settings: SweepSettings) -> list[Replicate]:
    """List the trainings of a trial: every seed on every fold and shift; none where it is a single run."""
    if not settings.seeds and not settings.folds and not settings.shifts:
        return []
    seeds = [Replicate(f"seed {seed}", {"seed": seed}) for seed in settings.seeds or []] or [Replicate("", {})]
    n = settings.folds or 0
    cuts = [Replicate(f"fold {fold}", {"data.folds": n, "data.fold": fold}) for fold in range(n)]
    cuts = cuts or [Replicate("", {})]
    if settings.shifts:
        cuts = [Replicate(cut.name or "plain", {"data.split": "patient", **cut.values}) for cut in cuts]
        cuts += [Replicate(shift, {"data.split": shift}) for shift in settings.shifts]
    return [
        Replicate(f"{seed.name} {cut.name}".strip(), {**seed.values, **cut.values}) for seed in seeds for cut in cuts
    ]


def _name(plan: Plan, choice: str) -> str:
    """Derive the name from the description, so that the same command finds its study again."""
    digest = hashlib.sha256(json.dumps(plan.describe(), sort_keys=True).encode()).hexdigest()[:8]
    stem = choice if choice != "default" else "grid" if plan.kind == "grid" else "search"
    return f"{stem}-{digest}"


def _logistic(argument: str) -> bool:
    key = argument.lstrip("+~").partition("=")[0]
    return any(key == name or key.startswith(f"{name}.") for name in LOGISTICS)


def _require_single(carried: Sequence[str]) -> None:
    for swept in read_space(carried, {}).parameters:
        raise InputError(f"{swept.key}={swept.text}: belongs to the sweep as a whole and cannot be swept over")


def _require_free(space: Space, settings: SweepSettings) -> None:
    """Refuse replicates over what is searched or fixed."""
    taken = {*space.fixed, *(parameter.key for parameter in space.parameters)}
    replicated_by = {"seed": settings.seeds, "data.folds": settings.folds, "data.fold": settings.folds}
    for key, replicated in {**replicated_by, "data.split": settings.shifts}.items():
        if replicated and key in taken:
            raise InputError(f"{key}: set or searched, and replicated by the sweep as well; one of the two is meant")
