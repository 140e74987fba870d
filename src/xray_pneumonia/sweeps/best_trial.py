"""Writes the best trial of a sweep as a config, and corrects its value for having been chosen."""

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.special import expit

from xray_pneumonia.config import groups, is_foreign
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.evaluation.abstention import Promise
from xray_pneumonia.evaluation.metrics import METRICS
from xray_pneumonia.evaluation.report.text import promise
from xray_pneumonia.evaluation.selection_bias import Evaluated, Selection, correct_for_choice
from xray_pneumonia.sweeps.plan import Plan
from xray_pneumonia.sweeps.space import overrides
from xray_pneumonia.tracking import stored_runs
from xray_pneumonia.tracking.store import Store

CORRECTED = "corrected"  # of the study: the number of trials that were complete, and the corrected value
THRESHOLD = 0.5  # of the metrics that trials report


def correct_best(store: Store, plan: Plan, trials: Collection[FrozenTrial]) -> Selection:
    """Correct the best value of the complete trials by the predictions that they left on validation."""
    objective, values = next(iter(plan.objectives)), [trial.values[0] for trial in trials]
    best = max(values) if plan.maximize else min(values)
    stage, _, name = objective.partition("/")
    bare = Selection(len(values), best, np.nan, reason=f"{objective} cannot be computed from predictions")
    if stage != "val" or name not in METRICS:
        return bare
    found: defaultdict[str, list[Evaluated]] = defaultdict(list)
    for run in stored_runs.find(store, {"sweep.name": plan.name, "verb": "train"}, status="FINISHED"):
        found[run.tags.get("sweep.trial", "")].append(_evaluated(run))
    missing = [trial.number for trial in trials if str(trial.number) not in found]
    if missing:
        return Selection(len(values), best, np.nan, reason=f"trial {missing[0]} left no predictions")
    return correct_for_choice([found[str(trial.number)] for trial in trials], name=name, seed=plan.settings.seed)


def _evaluated(run: stored_runs.StoredRun) -> Evaluated:
    with TemporaryDirectory() as folder:
        table = predictions.read(run.artifact("predictions/val.csv", target=Path(folder)))
    return Evaluated(table.assign(probability=expit(table["logit"])), THRESHOLD)


def word_promise(store: Store, plan: Plan, trial: FrozenTrial) -> str:
    """Word what the margin of a trial over folds promises, as its last training fitted it on all of them."""
    known = {"sweep.name": plan.name, "sweep.trial": str(trial.number), "verb": "train"}
    for run in stored_runs.find(store, known, status="FINISHED")[::-1] if plan.settings.folds else ():
        if run.metrics.get("promise/folds") == plan.settings.folds:
            found = {key: run.metrics[f"promise/{key}"] for key in Promise.__annotations__}
            counts = {key: int(found[key]) for key in ("images", "patients", "folds")}
            return promise(Promise(**found | counts))  # type: ignore[typeddict-item]
    return ""


def word_best(study: Study) -> str:
    """Word of how many trials the best one is, and what is left of its value; empty for a single trial."""
    complete = sum(trial.state == TrialState.COMPLETE for trial in study.get_trials(deepcopy=False))
    known: dict[str, Any] = study.user_attrs.get(CORRECTED, {})
    if complete < 2:
        return ""
    if known.get("trials") != complete or known.get("value") is None:
        return f"best of {complete}, flattered by the choice"
    return f"best of {complete}, corrected for the choice {known['value']:.4f}"


def best_config(plan: Plan, trial: FrozenTrial, *, sweep_id: str, words: str) -> str:
    """Write a trial as a config that `xray train experiment=FILE` takes: what it changed of the defaults.

    `words` say of how many trials it is the best.
    """
    others = ("sweep", "workers", "home", "tracking.", "extensions")  # of the command
    lines = [line for line in plan.shared() if not line.startswith(others)]
    defaults: list[Any] = []
    values = OmegaConf.create({})
    for override in OverridesParser.create().parse_overrides([*lines, *overrides(trial.params)]):
        key, value = override.key_or_group, override.value()
        if key == "experiment":
            defaults.insert(0, str(value))
        elif key in groups():
            defaults.append({f"override /{key}": str(value)})
        else:
            OmegaConf.update(values, key, value, force_add=True)
            if key.endswith("._target_") and is_foreign({"_target_": value}):  # the keys of a group's file are not its
                defaults.append({f"override /{key.removesuffix('._target_')}": None})
    figures = ", ".join(f"{name} {value:.4f}" for name, value in zip(plan.objectives, trial.values, strict=True))
    head = f"# @package _global_\n# Trial {trial.number} of sweep {plan.name} (run {sweep_id}): {figures}; {words}.\n"
    text = head + OmegaConf.to_yaml(OmegaConf.create({"defaults": [*defaults, "_self_"]}))
    return text + ("\n" + OmegaConf.to_yaml(values) if values else "")
