"""Keeps a sweep's parent run in MLflow: its plan, live table, plots and best config."""

import json
import logging
import math
import os
import platform
import sys
import time
from contextlib import ExitStack
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from xray_pneumonia.errors import Busy
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.sweeps.best_trial import CORRECTED, best_config, correct_best, word_best, word_promise
from xray_pneumonia.sweeps.plan import Plan, logged_as
from xray_pneumonia.sweeps.plots import optional, write_plots
from xray_pneumonia.sweeps.storage import locked
from xray_pneumonia.sweeps.study import DONE, SweepStudy
from xray_pneumonia.terminal import console, make_table
from xray_pneumonia.tracking import stored_runs
from xray_pneumonia.tracking.process import is_own
from xray_pneumonia.tracking.run import Run, start_run
from xray_pneumonia.tracking.store import Store, show_searched
from xray_pneumonia.tracking.store_errors import query
from xray_pneumonia.tracking.sync import is_alive

UPDATE_SECONDS = 5.0  # between two writings of the live table; each costs as much as the table is long
SHOWN = 10  # trials in the printed table
log = logging.getLogger(__name__)


def open_parent(plan: Plan, study: SweepStudy, store: Store, stack: ExitStack) -> Run | stored_runs.StoredRun:
    """Open the parent run until the stack closes; where another process has it, return it as it stands.

    On this machine a lock in the home tells that another process has it, elsewhere its sign of life in the store.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    tags = {"verb": "sweep", "sweep.name": plan.name}
    if (known := _find(store, tags)) and _is_led(known[0]):  # asked without the lock, which all trials need
        return known[0]
    with locked(study.storage):  # two commands at once would make two parents
        known = _find(store, tags)
        if known and _is_led(known[0]):
            return known[0]
        run_id = known[0].run_id if known else None
        try:
            parent = stack.enter_context(
                start_run(store, name=plan.name, tags=tags, system_metrics=False, run_id=run_id)
            )
        except Busy:
            return known[0]
    _record_plan(parent, plan, store, resumed=bool(known))
    return parent


def _find(store: Store, tags: dict[str, str]) -> list[stored_runs.StoredRun]:
    return query(store.uri, lambda: stored_runs.find(store, tags))


def _is_led(parent: stored_runs.StoredRun) -> bool:
    known = parent.status == "RUNNING" and {"host", "pid", "born"} <= {*parent.tags}
    return known and not is_own(parent.tags) and is_alive(parent)


def _record_plan(parent: Run, plan: Plan, store: Store, *, resumed: bool) -> None:
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
        parent.log_params(described["fixed"])  # under the names that the trials have
        if store.experiment_id:
            show_searched(store, list(described["space"]))


def _note(plan: Plan, described: dict[str, Any]) -> str:
    rows = [
        f"| `{key}` | `{json.dumps(text) if isinstance(text, dict) else text}` |"
        for key, text in described["space"].items()
    ]
    goal = ", ".join(f"{mode} {name}" for name, mode in plan.objectives.items())
    head = f"Sweep `{plan.name}`: {plan.n_trials} trials, sampler {plan.kind}, pruner {plan.settings.pruner}, {goal}."
    return "\n".join([head, "", "| key | range |", "| --- | --- |", *rows, "", "Its trials: `trials.csv`, live."])


class Progress:
    """Writes how far a sweep is to its parent run, and prints its result."""

    def __init__(self, plan: Plan, study: SweepStudy, parent: Run) -> None:
        self._plan, self._study, self._parent = plan, study, parent
        self._objective = next(iter(plan.objectives))
        self._written, self._began = 0.0, time.monotonic()
        self._seen = -1
        self._told = self._before = self._done()

    def update(self, *, now: bool = False) -> None:
        """Write the live table where a trial has ended, at most every `UPDATE_SECONDS` or `now`."""
        if not now and time.monotonic() - self._written < UPDATE_SECONDS:
            return
        trials = self._study.trials()
        ended = sum(trial.state.is_finished() for trial in trials)
        if ended != self._seen or now:
            predictions.write(tabulate(trials, self._plan), self._parent.path("trials.csv"))
            self._log_counts(trials)
            self._seen = ended
        self._written = time.monotonic()

    def tell(self) -> None:
        """Log the best value and the time that is left, where trials were done since the last time."""
        done = self._done()
        if done > self._told:
            left = self._study.room() + self._study.running()
            each = (time.monotonic() - self._began) / (done - self._before)
            time_left = f", about {word_seconds(each * left)} left" if left else ""
            progress = f"{done} of {self._plan.n_trials} trials, {60 / each:.1f} a minute{time_left}"
            log.info("best so far: %s; %s", self._word_best(), progress)
        self._told = done

    def _done(self) -> int:
        return sum(trial.state in DONE for trial in self._study.trials())

    def _word_best(self) -> str:
        ranked = self._ranked()
        return f"{self._objective} {ranked[0].values[0]:.6g} (trial {ranked[0].number})" if ranked else "none yet"

    def _log_counts(self, trials: list[FrozenTrial]) -> None:
        counts = _counts(trials)
        metrics = {f"sweep/{name}": float(count) for name, count in counts.items() if name != "waiting"}
        best = self.best()
        if math.isfinite(best):
            metrics[logged_as(self._objective)] = best
        self._parent.log_metrics(metrics, step=counts["complete"] + counts["pruned"])

    def best(self) -> float:
        """The best value of the first objective; NaN before there is one."""
        ranked = self._ranked()
        return ranked[0].values[0] if ranked else math.nan

    def _ranked(self) -> list[FrozenTrial]:
        """Order the completed trials by the first objective, the best one first."""
        complete = [t for t in self._study.trials() if t.state == TrialState.COMPLETE]
        return sorted(complete, key=lambda t: t.values[0], reverse=self._plan.maximize)

    def conclude(self, store: Store) -> None:
        """Write the last table, the plots, the best config and its value corrected for the choice."""
        self.update(now=True)
        ranked = self._ranked()
        if ranked:
            self._correct(store, ranked)
            words = word_best(self._study.study) or "its only trial"
            text = best_config(self._plan, ranked[0], sweep_id=self._parent.run_id, words=words)
            self._parent.path("best.yaml").write_text(text, encoding="utf-8")
            self._name_best(ranked[0], words, promised=word_promise(store, self._plan, ranked[0]))
        if len(ranked) > 1:
            write_plots(self._study.study, self._plan, self._parent)

    def _name_best(self, trial: FrozenTrial, words: str, *, promised: str) -> None:
        """Name the best trial, its value and its parameters: tags, since a sweep that goes on may find a better one."""
        value = f"{trial.values[0]:.6g}"
        tags = {"sweep.best.trial": trial.number, "sweep.best.value": value}
        tags |= {f"sweep.best.{key}": text for key, text in trial.params.items()}
        point = " ".join(f"{key}={text}" for key, text in trial.params.items())
        if promised:
            log.info("best trial: %s", promised)
            tags["sweep.best.promise"] = promised
        result = f"Best: `{self._plan.name} {trial.number}`, {self._objective} {value} ({words}), `{point}`."
        note = _note(self._plan, self._plan.describe())
        self._parent.set_tags({**tags, "mlflow.note.content": f"{result} {promised}\n\n{note}"})

    def _correct(self, store: Store, complete: list[FrozenTrial]) -> None:
        """Keep in study and parent run what is left of the best value; no reason for a sweep to fail."""
        if len(complete) < 2 or len(self._plan.objectives) > 1:
            return
        with optional("correction for the choice"):
            found = correct_best(store, self._plan, complete)
            log.info("%s: %s", self._objective, found)
            if math.isfinite(found.corrected):
                known = {"trials": len(complete), "value": found.corrected}
                self._study.study.set_user_attr(CORRECTED, known)
                self._parent.log_metrics({f"{logged_as(self._objective)}_corrected": found.corrected})

    def print(self) -> None:
        """Print the best trials, the failures, and how to see them."""
        out, trials = console(120), self._study.trials()
        counts = _counts(trials)
        summary = ", ".join(f"{n} {name}" for name, n in counts.items() if n and name != "waiting")
        numbers = ("trial", *self._plan.objectives)
        rows = make_table(f"Sweep {self._plan.name}: {summary}", (*numbers, "configuration"), right=numbers)
        for trial in self._ranked()[:SHOWN]:
            short = {key: f"{v:.3g}" if isinstance(v, float) else v for key, v in trial.params.items()}
            what = " ".join(f"{key}={value}" for key, value in short.items())
            rows.add_row(str(trial.number), *(f"{value:.4f}" for value in trial.values), what)
        out.print(rows)
        for trial in trials:
            if trial.state == TrialState.FAIL and "reason" in trial.user_attrs:
                out.print(f"trial {trial.number} failed: {trial.user_attrs['reason']}")
        if (words := word_best(self._study.study)) and len(self._plan.objectives) == 1:
            print(f"{self._objective} {self.best():.4f}: {words}, on the validation images of the trials")
        own = [one for one in sys.argv[1:] if one.startswith(("extensions=", "home="))]
        print("Train the best again:", *("xray train", *own, f"experiment={self._parent.folder / 'best.yaml'}"))
        print(f"See it: {self._parent.see_it}")
        done = counts["complete"] + counts["pruned"]
        print(f"sweep_id={self._parent.run_id} trials={done} {self._objective}={self.best():.6f}", flush=True)


def word_seconds(seconds: float) -> str:
    """Word a time to come, no finer than an estimate is."""
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _counts(trials: list[FrozenTrial]) -> dict[str, int]:
    return {state.name.lower(): sum(t.state == state for t in trials) for state in TrialState}


def tabulate(trials: list[FrozenTrial], plan: Plan) -> pd.DataFrame:
    """Make one row for each trial that was started."""
    rows = []
    for trial in trials:
        if trial.state == TrialState.WAITING:
            continue
        values = trial.values or [math.nan] * len(plan.objectives)
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                **dict(zip(plan.objectives, values, strict=True)),
                "sd": trial.user_attrs.get("sd", math.nan),
                "epochs": max(trial.intermediate_values, default=math.nan),
                "seconds": trial.duration.total_seconds() if trial.duration else math.nan,
                **{f"param.{key}": value for key, value in trial.params.items()},
                "replaces": trial.user_attrs.get("replaces", math.nan),
                "reason": trial.user_attrs.get("reason", ""),
            }
        )
    return pd.DataFrame(rows)
