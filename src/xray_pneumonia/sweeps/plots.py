"""Draws Optuna's plots of a study into the parent run: one page, `plots.html`, and a PNG each."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import optuna

from xray_pneumonia.sweeps.plan import Plan
from xray_pneumonia.tracking.run import Run

PLOTS = ("optimization_history", "param_importances", "parallel_coordinate", "slice")
log = logging.getLogger(__name__)


def write_plots(study: optuna.Study, plan: Plan, parent: Run) -> None:
    """Write Optuna's plots as one page, `plots.html`, and a PNG each; what a study is too small for is left out."""
    pages: list[str] = []
    for kind in PLOTS if plan.space.parameters else PLOTS[:1]:
        with optional(kind):
            pages.append(_plot_html(study, kind, plan, first=not pages))
        with optional(kind):
            _plot_png(study, kind, plan, parent)
    name = escape(plan.name)
    head = f'<!doctype html><meta charset="utf-8"><title>{name}</title><h1>Sweep {name}</h1>'
    parent.path("plots.html").write_text("\n".join([head, *pages]), encoding="utf-8")


@contextmanager
def optional(kind: str) -> Iterator[None]:
    """Log why there is no plot: that is no reason for a sweep whose trials are done to fail."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the PNGs are Optuna's experimental ones
        try:
            yield
        except Exception as error:
            log.info("no %s: %s", kind.replace("_", " "), error)


def _target(plan: Plan) -> dict[str, Any]:
    """Plot the first objective where there are several."""
    several = {"target": lambda trial: trial.values[0]} if len(plan.objectives) > 1 else {}
    return {**several, "target_name": next(iter(plan.objectives))}


def _plot_html(study: optuna.Study, kind: str, plan: Plan, *, first: bool) -> str:
    import optuna.visualization as visualization

    figure = getattr(visualization, f"plot_{kind}")(study, **_target(plan))
    return str(figure.to_html(full_html=False, include_plotlyjs=first))  # the script stands in the page once


def _plot_png(study: optuna.Study, kind: str, plan: Plan, parent: Run) -> None:
    import optuna.visualization.matplotlib as visualization

    logging.getLogger("matplotlib.category").setLevel(logging.WARNING)  # choices may look like numbers
    drawn = getattr(visualization, f"plot_{kind}")(study, **_target(plan))
    axes = drawn.flat[0] if hasattr(drawn, "flat") else drawn  # a slice has axes for each parameter
    figure = axes.figure
    figure.savefig(parent.path(f"plots/{kind}.png"), bbox_inches="tight", dpi=110)
    figure.clear()
