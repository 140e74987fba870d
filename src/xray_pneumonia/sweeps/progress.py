"""How far a sweep is: the live table of its parent run, and at the end its pictures and its best config."""

import logging
import math
import time

import pandas as pd
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from xray_pneumonia.evaluation import predictions
from xray_pneumonia.sweeps import best, plots
from xray_pneumonia.sweeps.plan import Plan
from xray_pneumonia.sweeps.study import DONE, SweepStudy
from xray_pneumonia.tracking.run import Run
from xray_pneumonia.tracking.store import Store, masked

EVERY = 5.0  # seconds between two writings of the live table; each costs as much as the table is long
SHOWN = 10  # trials in the printed table
log = logging.getLogger(__name__)


class Progress:
    """What is known of a running sweep.

    Args:
        plan: the sweep.
        study: its trials.
        parent: its run.
    """

    def __init__(self, plan: Plan, study: SweepStudy, parent: Run) -> None:
        self._plan, self._study, self._parent = plan, study, parent
        self._written = 0.0
        self._seen = -1

    def update(self, *, now: bool = False) -> None:
        """Write the live table, if something has changed and the last time is a while ago."""
        if not now and time.monotonic() - self._written < EVERY:
            return
        trials = self._study.trials()
        ended = sum(trial.state.is_finished() for trial in trials)
        if ended != self._seen or now:
            predictions.write(tabulate(trials, self._plan), self._parent.path("trials.csv"))
            self._log_counts(trials)
            self._seen = ended
        self._written = time.monotonic()

    def _log_counts(self, trials: list[FrozenTrial]) -> None:
        counts = {state.name.lower(): sum(t.state == state for t in trials) for state in TrialState}
        metrics = {f"sweep/{name}": float(count) for name, count in counts.items() if name != "waiting"}
        best_value = self.best()
        if math.isfinite(best_value):
            metrics[f"best/{next(iter(self._plan.objectives))}"] = best_value
        self._parent.log_metrics(metrics, step=sum(t.state in DONE for t in trials))

    def best(self) -> float:
        """The best value of the first objective; NaN before there is one."""
        ranked = self._ranked()
        return ranked[0].values[0] if ranked else math.nan

    def _ranked(self) -> list[FrozenTrial]:
        """Order the completed trials by the first objective, the best one first."""
        complete = [t for t in self._study.trials() if t.state == TrialState.COMPLETE]
        maximize = next(iter(self._plan.objectives.values())) == "max"
        return sorted(complete, key=lambda t: t.values[0], reverse=maximize)

    def conclude(self, *, arguments: list[str]) -> None:
        """Write the last table, the plots and the best config."""
        self.update(now=True)
        ranked = self._ranked()
        if not ranked:
            return
        text = best.render(self._plan, ranked[0], arguments=arguments, sweep_id=self._parent.run_id)
        self._parent.path("best.yaml").write_text(text, encoding="utf-8")
        plots.write(self._study.study, self._plan, self._parent)

    def print(self, store: Store) -> None:
        """Print the best trials, the failures, and how to see them."""
        console = Console(width=None if Console().is_terminal else 120, markup=False)
        trials = self._study.trials()
        counts = {state.name.lower(): sum(t.state == state for t in trials) for state in TrialState}
        said = ", ".join(f"{n} {name}" for name, n in counts.items() if n and name != "waiting")
        table = Table(title=f"Sweep {self._plan.name}: {said}", title_justify="left", title_style="bold")
        for name in ("trial", *self._plan.objectives):
            table.add_column(name, justify="right")
        table.add_column("configuration", overflow="fold")
        for trial in self._ranked()[:SHOWN]:
            what = " ".join(f"{key}={_short(value)}" for key, value in trial.params.items())
            table.add_row(str(trial.number), *(f"{value:.4f}" for value in trial.values), what)
        console.print(table)
        for trial in trials:
            if trial.state == TrialState.FAIL and "reason" in trial.user_attrs:
                console.print(
                    f"trial {trial.number} failed: {trial.user_attrs['reason']}", highlight=False, markup=False
                )
        folder = self._parent.folder
        print(f"Train the best again: xray train experiment={folder / 'best.yaml'}")
        print(f"See it: mlflow ui --backend-store-uri {masked(store.uri)}")
        name = next(iter(self._plan.objectives))
        print(
            f"sweep_id={self._parent.run_id} trials={sum(t.state in DONE for t in trials)} {name}={self.best():.6f}",
            flush=True,
        )


def tabulate(trials: list[FrozenTrial], plan: Plan) -> pd.DataFrame:
    """Make one row for each trial that was started."""
    rows = []
    for trial in trials:
        if trial.state == TrialState.WAITING:
            continue
        values = trial.values or [math.nan] * len(plan.objectives)
        reported = trial.intermediate_values
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                **dict(zip(plan.objectives, values, strict=True)),
                "sd": trial.user_attrs.get("sd", math.nan),
                "epochs": max(reported, default=math.nan),
                "seconds": trial.duration.total_seconds() if trial.duration else math.nan,
                **{f"param.{key}": value for key, value in trial.params.items()},
                "replaces": trial.user_attrs.get("replaces", math.nan),
                "reason": trial.user_attrs.get("reason", ""),
            }
        )
    return pd.DataFrame(rows)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
