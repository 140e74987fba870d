"""The run that a sweep is in MLflow: opened once for all who work on it, described, its children ended truthfully."""

import json
import logging
import os
import platform
from contextlib import ExitStack
from typing import Any

from optuna.trial import TrialState

from xray_pneumonia.errors import Busy
from xray_pneumonia.sweeps.plan import Plan
from xray_pneumonia.sweeps.study import DONE, SweepStudy
from xray_pneumonia.tracking import stored_runs
from xray_pneumonia.tracking.run import Run, start_run
from xray_pneumonia.tracking.store import Store
from xray_pneumonia.tracking.sync import sync

log = logging.getLogger(__name__)


def open_parent(plan: Plan, study: SweepStudy, store: Store, stack: ExitStack) -> Run | stored_runs.StoredRun:
    """Open the parent run for as long as the stack stands; where another process has it, say how it stands."""
    tags = {"verb": "sweep", "sweep.name": plan.name}
    with study.alone():  # two commands at once would make two parents
        known = stored_runs.find(store, tags)
        run_id = known[0].run_id if known else None
        try:
            parent = stack.enter_context(
                start_run(store, name=plan.name, tags=tags, system_metrics=False, run_id=run_id)
            )
        except Busy:
            return known[0]
    _record_plan(parent, plan, resumed=bool(known))
    return parent


def _record_plan(parent: Run, plan: Plan, *, resumed: bool) -> None:
    described = plan.describe()
    parent.path("space.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
    parent.set_tags(
        {
            "host": platform.node(),
            "pid": str(os.getpid()),
            "sweep.sampler": plan.kind,
            "sweep.pruner": plan.settings.pruner,
            "sweep.n_trials": plan.n_trials,
            "mlflow.note.content": _note(plan, described),
        }
    )
    if not resumed:
        parent.log_params({f"space/{key}": text for key, text in described["space"].items()})
        parent.log_params({f"fixed/{key}": text for key, text in described["fixed"].items()})


def _note(plan: Plan, described: dict[str, Any]) -> str:
    rows = [
        f"| `{key}` | `{json.dumps(text) if isinstance(text, dict) else text}` |"
        for key, text in described["space"].items()
    ]
    goal = ", ".join(f"{mode} {name}" for name, mode in plan.objectives.items())
    head = f"Sweep `{plan.name}`: {plan.n_trials} trials, sampler {plan.kind}, pruner {plan.settings.pruner}, {goal}."
    return "\n".join([head, "", "| key | range |", "| --- | --- |", *rows, "", "Its trials: `trials.csv`, live."])


def end_forgotten(store: Store, study: SweepStudy, parent: Run, *, name: str) -> None:
    """End the runs that could not be ended when their trials were, for the store was away.

    What they left in the journals of this machine is sent; those of other machines end as their trials did.
    """
    for sent in sync(store.uri, store.home, tags={"sweep.name": name}):
        log.info("run %s: %s", sent.run_id, sent.problem or f"sent late, {sent.status}")
    states = {str(trial.number): trial.state for trial in study.trials()}
    for run in stored_runs.find(store, {"sweep.name": name}, status="RUNNING"):
        state = states.get(run.tags.get("sweep.trial", ""), TrialState.FAIL)
        if state.is_finished() and run.run_id not in {parent.run_id, parent.mlflow_id}:
            status = "FINISHED" if state in DONE else "FAILED"
            stored_runs.close(store, run.run_id, status=status, reason="the store was away when its trial ended")
