"""Optuna's own plots of a study, as one interactive page and as pictures."""

import logging
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import optuna
from optuna.trial import TrialState

from xray_pneumonia.sweeps.plan import Plan
from xray_pneumonia.tracking.run import Run

log = logging.getLogger(__name__)
KINDS = ("optimization_history", "param_importances", "parallel_coordinate", "slice")


def write(study: optuna.Study, plan: Plan, parent: Run) -> None:
    """Write `plots.html` and a PNG of each plot; a plot that a study is too small for is left out.

    A sweep whose trials are done is not to fail for a picture's sake, so what cannot be drawn is said.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    kinds = [kind for kind in KINDS if plan.space.parameters or kind == "optimization_history"]
    if len(complete) < 2:
        return
    pages: list[str] = []
    for kind in kinds:
        pages += _drawn(kind, partial(_interactive, study, kind, plan, first=not pages))
        _drawn(kind, partial(_picture, study, kind, plan, parent))
    parent.path("plots.html").write_text(_page(plan.name, pages), encoding="utf-8")


def _drawn(kind: str, draw: Callable[[], str]) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pictures are Optuna's experimental ones
        try:
            return [draw()]
        except Exception as error:
            log.info("no %s: %s", kind.replace("_", " "), error)
    return []


def _target(plan: Plan, kind: str) -> dict[str, Any]:
    """Show the first objective where there are several."""
    name = next(iter(plan.objectives))
    if len(plan.objectives) == 1:
        return {"target_name": name}
    return {"target": lambda trial: trial.values[0], "target_name": name}


def _interactive(study: optuna.Study, kind: str, plan: Plan, *, first: bool) -> str:
    import optuna.visualization as visualization

    figure = getattr(visualization, f"plot_{kind}")(study, **_target(plan, kind))
    return str(figure.to_html(full_html=False, include_plotlyjs=first))  # the script stands in the page once


def _picture(study: optuna.Study, kind: str, plan: Plan, parent: Run) -> str:
    import optuna.visualization.matplotlib as visualization

    logging.getLogger("matplotlib.category").setLevel(logging.WARNING)  # choices may look like numbers
    drawn = getattr(visualization, f"plot_{kind}")(study, **_target(plan, kind))
    axes = drawn.flat[0] if hasattr(drawn, "flat") else drawn  # a slice has axes for each parameter
    figure = axes.figure
    figure.savefig(parent.path(f"plots/{kind}.png"), bbox_inches="tight", dpi=110)
    figure.clear()
    return kind


def _page(name: str, parts: list[str]) -> str:
    from html import escape

    head = f'<!doctype html><meta charset="utf-8"><title>{escape(name)}</title><h1>Sweep {escape(name)}</h1>'
    return "\n".join([head, *parts])
