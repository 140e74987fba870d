"""Learning curves of several runs, laid over each other."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xray_pneumonia.evaluation.report.figures import History

TITLES = {"val/loss": "Validation loss", "val/accuracy": "Validation accuracy", "val/auroc": "Validation AUROC"}


def overlaid_curves(histories: Mapping[str, Sequence[History]]) -> Figure:
    """Draw a line for each group of runs, the mean where there are several, over each run as a faint one.

    Args:
        histories: the histories of the runs of each group, by its label.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    colours = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
    for axes, (metric, title) in zip(figure.subplots(1, len(TITLES)), TITLES.items(), strict=True):
        for place, (label, runs) in enumerate(histories.items()):
            curves = [dict(run.get(metric, [])) for run in runs]
            _draw(axes, [curve for curve in curves if curve], label, colours[place % len(colours)])
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _draw(axes: Axes, curves: list[dict[int, float]], label: str, colour: tuple[float, float, float]) -> None:
    if not curves:
        return
    for curve in curves if len(curves) > 1 else []:
        axes.plot(list(curve), list(curve.values()), color=colour, alpha=0.25, lw=0.8)
    epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
    mean = [float(np.mean([curve[epoch] for curve in curves])) for epoch in epochs]
    axes.plot(epochs, mean, "o-", ms=3, color=colour, label=label)
