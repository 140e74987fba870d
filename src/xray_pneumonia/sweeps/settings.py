"""Defines the config group `sweep`: what is searched, how, and for how long."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Len
from omegaconf import DictConfig, OmegaConf, open_dict

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.metrics import Monitor
from xray_pneumonia.evaluation.robust_score import CORRUPTED, MEASURES, PLAIN, SCORE
from xray_pneumonia.signatures import problems
from xray_pneumonia.types import Count, Seed, Text, Whole

# What a trial can be ranked by: metrics of its best epoch, the size of the net, the median seconds of an epoch,
# the score of `evaluation/robust_score.py`.
Objective = Monitor | Literal["model/parameters", "time/epoch_seconds", "robust/score"]
Direction = Literal["max", "min"]


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """The config group `sweep`; `conf/sweep/default.yaml` says what each key means."""

    name: Text | None
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
    shifts: list[Text]
    scales: dict[str, dict[str, list[float]]]
    max_failures: Whole | None
    parallel: Count | None
    storage: Text | None
    stale_after: Count
    trial: dict[str, Any] | None

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
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
        if self.objectives and SCORE in self.objectives:
            self._require_scales()

    def _require_scales(self) -> None:
        if self.pruner != "none":
            raise InputError(
                f"sweep.pruner={self.pruner}: {SCORE} is known after a training, not after an epoch; set it to none: "
                f"a trial that can no longer be the best is given up between its trainings, from trial "
                f"{self.prune_after_trials} on (sweep.prune_after_trials)"
            )
        for part in (PLAIN, *CORRUPTED, *self.shifts):
            scales = self.scales.get(part, {})
            if set(scales) != set(MEASURES) or any(len(two) != 2 or two[1] <= 0 for two in scales.values()):
                raise InputError(
                    f"sweep.scales.{part}={scales}: {SCORE} needs {' and '.join(MEASURES)} of the reference, each as "
                    f"[mean, standard deviation over seeds]; known parts: {', '.join(self.scales) or 'none'}"
                )


@dataclass(frozen=True)
class TrialSpec:
    """What the sweeper tells a job about its trial: the config's `sweep.trial`."""

    id: int
    number: int
    study: str
    parent: str
    objectives: dict[str, str]
    point: dict[str, Any]


def read_settings(node: DictConfig) -> SweepSettings:
    """Check the config group `sweep`.

    Raises:
        InputError: with every problem found.
    """
    values: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    values.pop("_target_", None)
    found = problems(values, SweepSettings, prefix="sweep.")
    if found:
        raise InputError("\n  ".join(["the sweep is wrong:", *found]) if len(found) > 1 else found[0])
    return SweepSettings(**values)


def take_sweep(cfg: DictConfig) -> SweepSettings | None:
    """Remove the sweep's keys from a config: what is left is one training, the same with or without a sweep.

    Returns:
        The settings where the training is a trial of a sweep, else None.

    Raises:
        InputError: a search was asked for without `-m`.
    """
    with open_dict(cfg):
        node = cfg.pop("sweep", None)
        cfg.pop("workers", None)
    if node is None:
        return None
    if node.trial is None:
        if node.space or node.seeds or node.folds or node.shifts:
            raise InputError("sweep: a sweep needs -m: xray train -m sweep=...")
        return None
    return read_settings(node)
