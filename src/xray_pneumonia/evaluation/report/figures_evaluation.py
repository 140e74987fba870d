"""Pictures of a judgement. Every function returns a figure."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from xray_pneumonia.evaluation.abstention import ANSWERS
from xray_pneumonia.evaluation.assessment import Judgement
from xray_pneumonia.evaluation.intervals import Estimate, patient_weights
from xray_pneumonia.evaluation.metrics import Vector
from xray_pneumonia.evaluation.report.figures import CLASSES, COLOURS
from xray_pneumonia.evaluation.robustness import CLEAN

INK, SOFT, WARM, LINE = COLOURS["val"], "#aebcd4", COLOURS["PNEUMONIA"], "#c9c9c9"
GRID = np.linspace(0, 1, 201)
Maps = npt.NDArray[np.float32]
Gray = npt.NDArray[np.uint8]


def roc_with_band(judgement: Judgement, *, seed: int, replicates: int = 300) -> Figure:
    """Draw the ROC with a 95 % band over resampled patients, and both operating points."""
    table = judgement.table
    figure = Figure(figsize=(5.2, 4.8), layout="constrained")
    axes = figure.subplots()
    low, high = _band(table, seed=seed, replicates=replicates)
    axes.fill_between(GRID, low, high, color=SOFT, alpha=0.5, lw=0, label="95 % of resampled patients")
    fpr, tpr, _ = roc_curve(table["label"], table["logit"])
    axes.plot(fpr, tpr, color=INK, lw=1.8)
    axes.plot([0, 1], [0, 1], color=LINE, lw=1)
    points = (("chosen on validation", judgement.at_point, "o"), ("at 0.5", judgement.at_half, "s"))
    for name, metrics, marker in points:
        axes.plot(
            [1 - metrics["specificity"].value],
            [metrics["sensitivity"].value],
            marker,
            color=WARM,
            mfc=WARM if marker == "o" else "white",
            ms=8,
            label=name,
        )
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title=f"AUROC {judgement.at_point['auroc']}")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.legend(frameon=False, loc="lower right")
    return figure


def reliability_diagram(judgement: Judgement) -> Figure:
    """Draw said against true, before and after calibration, with where the probabilities lie below."""
    figure = Figure(figsize=(5.2, 4.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    above.plot([0, 1], [0, 1], color=LINE, lw=1)
    above.plot(judgement.bins_before["said"], judgement.bins_before["true"], "s--", color=SOFT, label="before", ms=5)
    bins = judgement.bins
    spread = np.abs(np.stack([bins["true"] - bins["low"], bins["high"] - bins["true"]]))
    above.errorbar(bins["said"], bins["true"], yerr=spread, fmt="o-", color=INK, capsize=3, label="calibrated", ms=6)
    above.set(ylabel="truly PNEUMONIA", ylim=(-0.03, 1.03), title="What was said, and what was true")
    above.legend(frameon=False, loc="lower right")
    below.hist(judgement.table["probability"], bins=20, range=(0, 1), color=SOFT)
    below.set(xlabel="probability that was said", ylabel="images")
    return figure


def forest(rows: list[tuple[str, Estimate]], *, title: str, reference: float | None = None) -> Figure:
    """Draw one estimate a row with its interval; a line marks the reference."""
    figure = Figure(figsize=(7, 0.9 + 0.38 * max(1, len(rows))), layout="constrained")
    axes = figure.subplots()
    for place, (_, estimate) in enumerate(rows):
        if not np.isnan(estimate.low):
            axes.plot([estimate.low, estimate.high], [place, place], color=INK, lw=2, solid_capstyle="round")
        axes.plot([estimate.value], [place], "o", color=INK, ms=6)
    if reference is not None:
        axes.axvline(reference, color=WARM, lw=1, ls="--")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set(title=title, ylim=(len(rows) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
    return figure


def coverage_and_accuracy(judgement: Judgement) -> Figure:
    """Draw how accurate the answers get as more images are left to a closer look, and what the band does."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    curve, shares = figure.subplots(1, 2)
    line = judgement.trade_off.dropna()
    curve.fill_between(line["coverage"], line["low"], line["high"], color=SOFT, alpha=0.5, lw=0)
    curve.plot(line["coverage"], line["accuracy"], "o-", color=INK)
    for row in line.drop_duplicates("coverage").itertuples():
        curve.annotate(f"{row.error:.1%}", (row.coverage, row.accuracy), (4, 5), textcoords="offset points", fontsize=8)  # type: ignore[arg-type, str-format]
    if line.empty:
        curve.set(xlim=(0, 1), ylim=(0, 1))
        curve.text(0.5, 0.5, "not known: bands are fitted on\nvalidation predictions", ha="center", va="center")
    curve.set(xlabel="share of images answered", ylabel="accuracy of the answers", title="Promised error of each class")
    counts = judgement.answers.to_numpy(float)
    counts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    left = np.zeros(2)
    for place, (answer, colour) in enumerate(zip(ANSWERS, (COLOURS["NORMAL"], "#d9d9d9", WARM), strict=True)):
        shares.barh(CLASSES, counts[:, place], left=left, color=colour, label=answer)
        left += counts[:, place]
    shares.set(title="What becomes of each class", xlim=(0, 1), xlabel="share of the class")
    shares.grid(visible=False, axis="y")
    shares.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return figure


def robustness_curves(table: pd.DataFrame) -> Figure:
    """Draw AUROC against the strength of each corruption."""
    kinds = [kind for kind in table["kind"].unique() if kind != CLEAN]
    figure = Figure(figsize=(11, 2.3 * -(-len(kinds) // 5)), layout="constrained")
    clean = table.loc[table["kind"] == CLEAN].iloc[0]
    floor = np.nanmin([0.42, *table[["auroc", "balanced_accuracy", "low"]].to_numpy(float).ravel()]) - 0.02
    for axes, kind in zip(
        figure.subplots(-(-len(kinds) // 5), 5, sharey=True, squeeze=False).flat, kinds, strict=False
    ):
        part = table[table["kind"] == kind]
        axes.axhline(clean["auroc"], color=LINE, lw=1)
        axes.fill_between(part["strength"], part["low"], part["high"], color=SOFT, alpha=0.5, lw=0)
        axes.plot(part["strength"], part["auroc"], "o-", color=INK, ms=3, label="AUROC")
        axes.plot(part["strength"], part["balanced_accuracy"], "s--", color=WARM, ms=3, label="balanced accuracy")
        axes.set(title=kind, ylim=(floor, 1.02))
        axes.set_xticks(range(1, 6))
    for axes in figure.axes[len(kinds) :]:
        axes.set_axis_off()
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.axes[-1].legend(handles, names, frameon=False, loc="center")
    return figure


def heat_maps(images: Gray, maps: Maps, titles: list[str], colours: list[str]) -> Figure:
    """Show films (N, H, W) and beneath each the same film under its map, six a row."""
    rows = -(-len(images) // 6)
    figure = Figure(figsize=(12, 4.7 * rows), layout="constrained")
    grid = figure.subplots(2 * rows, 6, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for place, (image, heat) in enumerate(zip(images, maps, strict=True)):
        row, column = 2 * (place // 6), place % 6
        grid[row, column].imshow(image, cmap="gray", vmin=0, vmax=255)
        grid[row, column].set_title(titles[place], fontsize=8, color=colours[place], loc="center")
        _overlay(grid[row + 1, column], image, heat)
    return figure


def _overlay(axes: Axes, image: Gray, heat: npt.NDArray[np.float32]) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=np.clip(heat * 0.65, 0, 0.65))


def _band(table: pd.DataFrame, *, seed: int, replicates: int) -> tuple[Vector, Vector]:
    """Interpolate the sensitivity of resampled patients at each false positive rate of `GRID`."""
    codes, patients = pd.factorize(table["patient"])
    order = np.argsort(-table["logit"].to_numpy(), kind="stable")
    truth = table["label"].to_numpy()[order]
    curves = []
    for block in patient_weights(len(patients), replicates=replicates, seed=seed, images=len(table)):
        for weights in block[:, codes[order]]:
            ill, well = np.cumsum(weights * truth), np.cumsum(weights * (1 - truth))
            if ill[-1] and well[-1]:
                curves.append(np.interp(GRID, well / well[-1], ill / ill[-1]))
    low, high = np.quantile(curves, [0.025, 0.975], axis=0)
    return low, high
