"""Draws the figures of an evaluation report with matplotlib; every function returns a figure."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from xray_pneumonia.evaluation.abstention import ANSWERS
from xray_pneumonia.evaluation.assessment import Assessment
from xray_pneumonia.evaluation.intervals import FEWEST, Estimate, patient_weights
from xray_pneumonia.evaluation.report.figures import COLOURS, LINE, confusion_matrix, worst_mistakes
from xray_pneumonia.evaluation.robustness import CLEAN
from xray_pneumonia.types import CLASSES, Classes, Gray, Vector, spoken

if TYPE_CHECKING:
    from xray_pneumonia.evaluation.gradcam import Explanation
    from xray_pneumonia.evaluation.report.build import Report

INK, SOFT, WARM = COLOURS["val"], "#aebcd4", COLOURS["PNEUMONIA"]
RIGHT, WRONG, UNSURE = "#2f7d4f", "#c0392b", "#8a6d00"
CASE_COLOURS = {"found": RIGHT, "cleared": RIGHT, "missed": WRONG, "alarmed": WRONG, "unsure": UNSURE}
FALSE_POSITIVE_RATES = np.linspace(0, 1, 201)


def draw(report: "Report", images: Gray, *, seed: int) -> dict[str, Figure]:
    """Draw all figures of a report, by name; images (N, H, W) are the rows of its table."""
    assessment = report.assessment
    table, threshold = assessment.table.reset_index(drop=True), assessment.decision.threshold
    drawn = {
        "roc": roc_with_band(assessment, seed=seed),
        "reliability": reliability_diagram(assessment, classes=report.context.classes),
        "confusion_matrix": confusion_matrix(table, threshold=threshold, classes=report.context.classes),
        "coverage": coverage_and_accuracy(assessment, classes=report.context.classes),
        "worst_mistakes": worst_mistakes(table, images, threshold=threshold, classes=report.context.classes),
    }
    if assessment.subgroups:
        rows = [
            (f"{one.value} ({one.images} / {one.patients}{', few' if one.few else ''})", one.metrics["sensitivity"])
            for one in assessment.subgroups
        ]
        overall = assessment.at_point["sensitivity"].value
        drawn["subgroups"] = forest(rows, title="Sensitivity by subgroup", reference=overall)
    if report.shortcuts:
        rows = [("this model", assessment.delong), *report.shortcuts.items()]
        drawn["shortcuts"] = forest(rows, title="AUROC compared with shortcuts", reference=0.5)
    if report.robustness is not None:
        drawn["robustness"] = robustness_curves(report.robustness)
    if report.maps and len(report.maps.maps):
        drawn["heat_maps"] = heat_maps(report.maps)
    return drawn


def roc_with_band(assessment: Assessment, *, seed: int, replicates: int = 300) -> Figure:
    """Draw the ROC with a 95 % band over resampled patients, and both operating points."""
    from sklearn.metrics import roc_curve

    table = assessment.table
    figure = Figure(figsize=(5.2, 4.8), layout="constrained")
    axes = figure.subplots()
    if assessment.fewest >= FEWEST:
        low, high = _roc_interval(table, seed=seed, replicates=replicates)
        axes.fill_between(
            FALSE_POSITIVE_RATES, low, high, color=SOFT, alpha=0.5, lw=0, label="95 % of resampled patients"
        )
    fpr, tpr, _ = roc_curve(table["label"], table["logit"])
    axes.plot(fpr, tpr, color=INK, lw=1.8)
    axes.plot([0, 1], [0, 1], color=LINE, lw=1)
    for name, metrics, marker, fill in (
        ("chosen on validation", assessment.at_point, "o", WARM),
        ("at 0.5", assessment.at_half, "s", "white"),
    ):
        x, y = 1 - metrics["specificity"].value, metrics["sensitivity"].value
        axes.plot([x], [y], marker, color=WARM, mfc=fill, ms=8, label=name)
    counts = f"{assessment.images} images, {assessment.patients} patients"
    title = f"AUROC {assessment.at_point['auroc']}\n{counts}"
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title=title)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.legend(frameon=False, loc="lower right")
    return figure


def reliability_diagram(assessment: Assessment, *, classes: Classes = CLASSES) -> Figure:
    """Draw frequency against probability, before and after calibration, over a histogram of the probabilities."""
    figure = Figure(figsize=(5.2, 4.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    above.plot([0, 1], [0, 1], color=LINE, lw=1)
    before, bins = assessment.bins_before, assessment.bins
    above.plot(before["probability"], before["frequency"], "s--", color=SOFT, label="before", ms=5)
    spread = np.abs(np.stack([bins["frequency"] - bins["low"], bins["high"] - bins["frequency"]]))
    spread = np.where(bins["patients"] >= FEWEST, spread, np.nan)
    style = {"fmt": "o-", "color": INK, "capsize": 3, "label": "calibrated", "ms": 6}
    above.errorbar(bins["probability"], bins["frequency"], yerr=spread, **style)
    above.set(ylabel=f"truly {classes[1]}", ylim=(-0.03, 1.03), title="What was said, and what was true")
    above.legend(frameon=False, loc="lower right")
    below.hist(assessment.table["probability"], bins=20, range=(0, 1), color=SOFT)
    below.set(xlabel="probability that was said", ylabel="images")
    return figure


def forest(rows: list[tuple[str, Estimate]], *, title: str, reference: float) -> Figure:
    """Draw one estimate a row with its interval; a line marks the reference."""
    figure = Figure(figsize=(7, 0.9 + 0.38 * max(1, len(rows))), layout="constrained")
    axes = figure.subplots()
    for place, (_, estimate) in enumerate(rows):
        if not np.isnan(estimate.low):
            axes.plot([estimate.low, estimate.high], [place, place], color=INK, lw=2, solid_capstyle="round")
        axes.plot([estimate.value], [place], "o", color=INK, ms=6)
    axes.axvline(reference, color=WARM, lw=1, ls="--")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set(title=title, ylim=(len(rows) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
    return figure


def coverage_and_accuracy(assessment: Assessment, *, classes: Classes = CLASSES) -> Figure:
    """Draw accuracy against coverage of the answers, and the shares of the answers in each class."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    curve, shares = figure.subplots(1, 2)
    line = assessment.trade_off.dropna()
    if assessment.patients >= FEWEST:
        curve.fill_between(line["coverage"], line["low"], line["high"], color=SOFT, alpha=0.5, lw=0)
    curve.plot(line["coverage"], line["accuracy"], "o-", color=INK)
    for share, coverage, accuracy, *_ in line.drop_duplicates("coverage").itertuples(index=False, name=None):
        curve.annotate(f"{share:.0%}", (coverage, accuracy), (4, 5), textcoords="offset points", fontsize=8)
    if line.empty:
        curve.set(xlim=(0, 1), ylim=(0, 1))
        curve.text(0.5, 0.5, "not known: margins are fitted on\nvalidation predictions", ha="center", va="center")
    curve.set(
        xlabel="share of images answered",
        ylabel="accuracy of the answers",
        title="Margins that answer so much of validation",
    )
    counts = assessment.answers.to_numpy(float)
    counts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    left = np.zeros(2)
    named = dict(zip(("normal", "pneumonia"), map(spoken, classes), strict=True))
    for place, (answer, colour) in enumerate(zip(ANSWERS, (COLOURS["NORMAL"], "#d9d9d9", WARM), strict=True)):
        shares.barh(classes, counts[:, place], left=left, color=colour, label=named.get(answer, answer))
        left += counts[:, place]
    shares.set(title="What becomes of each class", xlim=(0, 1), xlabel="share of the class")
    shares.grid(visible=False, axis="y")
    shares.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return figure


def robustness_curves(table: pd.DataFrame) -> Figure:
    """Draw AUROC and balanced accuracy against the strength of each corruption."""
    kinds = [kind for kind in table["kind"].unique() if kind != CLEAN]
    rows = -(-len(kinds) // 5)
    figure = Figure(figsize=(11, 2.3 * rows), layout="constrained")
    clean = table.loc[table["kind"] == CLEAN].iloc[0]
    floor = np.nanmin([0.42, *table[["auroc", "balanced_accuracy", "low"]].to_numpy(float).ravel()]) - 0.02
    for axes, kind in zip(figure.subplots(rows, 5, sharey=True, squeeze=False).flat, kinds, strict=False):
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


def heat_maps(explained: "Explanation") -> Figure:
    """Show each case and beneath it the same image under its map, six a row."""
    figure = Figure(figsize=(12, 4.7 * -(-len(explained.maps) // 6)), layout="constrained")
    grid = figure.subplots(2 * -(-len(explained.maps) // 6), 6, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    cases = zip(explained.cases.itertuples(), explained.images, explained.maps, strict=True)
    for place, (case, image, heat) in enumerate(cases):
        above, below = grid[2 * (place // 6) : 2 * (place // 6) + 2, place % 6]
        title = f"{case.case}: {case.subtype}\np = {case.probability:.3f}\n{case.patient}"
        above.set_title(title, fontsize=8, color=CASE_COLOURS[str(case.case)], loc="center")
        for axes in (above, below):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        below.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=np.clip(heat * 0.65, 0, 0.65))
    return figure


def _roc_interval(table: pd.DataFrame, *, seed: int, replicates: int) -> tuple[Vector, Vector]:
    """Interpolate the sensitivity of resampled patients at each of `FALSE_POSITIVE_RATES`; returns 95 % limits."""
    codes, patients = pd.factorize(table["patient"])
    order = np.argsort(-table["logit"].to_numpy(), kind="stable")
    truth = table["label"].to_numpy()[order]
    curves = []
    for block in patient_weights(len(patients), replicates=replicates, seed=seed, images=len(table)):
        for weights in block[:, codes[order]]:
            ill, well = np.cumsum(weights * truth), np.cumsum(weights * (1 - truth))
            if ill[-1] and well[-1]:
                curves.append(np.interp(FALSE_POSITIVE_RATES, well / well[-1], ill / ill[-1]))
    low, high = np.quantile(curves, [0.025, 0.975], axis=0)
    return low, high
