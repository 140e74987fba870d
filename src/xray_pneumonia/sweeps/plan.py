"""What one sweep is going to do: its space, its budget, its objectives, its replicates, and its name."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from xray_pneumonia import config
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.metrics import monitor_mode
from xray_pneumonia.sweeps import syntax
from xray_pneumonia.sweeps.settings import SweepSettings
from xray_pneumonia.sweeps.space import Point, Space

BUDGET = 20  # trials, where a search names none
# Where and how a sweep runs; none of it changes what a trial's value means.
LOGISTICS = ("home", "sweep", "workers", "tracking", "trainer.threads", "hydra")


@dataclass(frozen=True)
class Plan:
    """A sweep, read and checked.

    Attributes:
        settings: the config group `sweep`.
        name: of the study.
        space: what is searched and what all trials share.
        carried: overrides that every trial takes over and that do not belong to the space.
        kind: the sampler.
        points: to be tried before anything is sampled; all there is, for a grid.
        n_trials: completed or pruned trials to reach.
        objectives: metrics with `max` or `min`; the first one is reported each epoch.
        max_epochs: of a trial.
    """

    settings: SweepSettings
    name: str
    space: Space
    carried: tuple[str, ...]
    kind: str
    points: tuple[Point, ...]
    n_trials: int
    objectives: dict[str, str]
    max_epochs: int

    def describe(self) -> dict[str, Any]:
        """Say what must not change while a study goes on."""
        s = self.settings
        return {**self.space.describe(), "objectives": self.objectives, "seeds": s.seeds, "folds": s.folds}


def read_settings(cfg: DictConfig) -> SweepSettings:
    """Check the config group `sweep`.

    Raises:
        InputError: with all that is wrong.
    """
    values: dict[str, Any] = OmegaConf.to_container(cfg.sweep, resolve=True)  # type: ignore[assignment]
    values.pop("_target_", None)
    problems = config.problems(values, SweepSettings, prefix="sweep.")
    if problems:
        raise InputError("\n  ".join(["the sweep is wrong:", *problems]) if len(problems) > 1 else problems[0])
    return SweepSettings(**values)


def read(cfg: DictConfig, arguments: Sequence[str], *, choice: str) -> Plan:
    """Make the plan of a multirun.

    Args:
        cfg: the composed config, without what is searched.
        arguments: the overrides, as typed.
        choice: which config of the group `sweep` was chosen.

    Raises:
        InputError: the space is empty or contradicts itself.
    """
    settings = read_settings(cfg)
    carried = tuple(argument for argument in arguments if _logistic(argument))
    space = syntax.read([argument for argument in arguments if argument not in carried], settings.space)
    _require_single(carried)
    if not space.parameters and not (settings.seeds or settings.folds):
        raise InputError(
            "nothing to sweep over: give values (model=cnn,resnet), a range (optimizer.lr=interval(1e-4,1e-2)), "
            "a config (sweep=optimizer) or replicates (sweep.seeds=[1,2,3])"
        )
    _require_free(space, settings)
    kind = settings.sampler
    if kind == "auto":
        kind = "grid" if space.finite and settings.n_trials is None and not settings.first else "tpe"
    first = [space.require(point, origin=f"sweep.first[{i}]") for i, point in enumerate(settings.first)]
    points = space.grid() if kind == "grid" else []
    budget = settings.n_trials or (len(points) if kind == "grid" else BUDGET)
    plan = Plan(
        settings=settings,
        name=settings.name or "",
        space=space,
        carried=carried,
        kind=kind,
        points=tuple(first + [point for point in points if point not in first]),
        n_trials=min(budget, len(points)) if kind == "grid" else budget,
        objectives={
            str(k): str(v)
            for k, v in (settings.objectives or {cfg.monitor: monitor_mode(cfg.monitor, cfg.mode)}).items()
        },
        max_epochs=int(cfg.trainer.max_epochs),
    )
    return plan if settings.name else _named(plan, choice)


def _named(plan: Plan, choice: str) -> Plan:
    """Name a sweep after what it does, so that the same command finds its study again."""
    from dataclasses import replace

    digest = hashlib.sha256(json.dumps(plan.describe(), sort_keys=True).encode()).hexdigest()[:8]
    stem = choice if choice != "default" else "grid" if plan.kind == "grid" else "search"
    return replace(plan, name=f"{stem}-{digest}")


def _logistic(argument: str) -> bool:
    key = argument.lstrip("+~").partition("=")[0]
    return any(key == name or key.startswith(f"{name}.") for name in LOGISTICS)


def _require_single(carried: Sequence[str]) -> None:
    swept = syntax.read(carried, {}).parameters
    if swept:
        raise InputError(f"{swept[0].key}={swept[0].text}: belongs to the sweep as a whole and cannot be swept over")


def _require_free(space: Space, settings: SweepSettings) -> None:
    """Refuse replicates over what is searched or fixed."""
    taken = {*space.fixed, *(parameter.key for parameter in space.parameters)}
    for key, replicated in {"seed": settings.seeds, "data.folds": settings.folds, "data.fold": settings.folds}.items():
        if replicated and key in taken:
            raise InputError(f"{key}: set or searched, and replicated by the sweep as well; one of the two is meant")
