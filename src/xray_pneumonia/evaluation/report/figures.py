"""Draws data sets, trainings and predictions with matplotlib; every function returns a figure."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xray_pneumonia.types import CLASSES, Classes, Gray
from xray_pneumonia.whole_files import write_whole

COLOURS = {"NORMAL": "#2a7f9e", "PNEUMONIA": "#d1603d", "train": "#8a8f98", "val": "#2b3a55"}
LINE = "#c9c9c9"  # of what is a reference only
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "figure.dpi": 110,
}
mpl.rcParams.update(STYLE)  # type: ignore[arg-type]
MISTAKES = 12  # images shown
OVERLAID = {"val/loss": "Validation loss", "val/accuracy": "Validation accuracy", "val/auroc": "Validation AUROC"}

History = dict[str, list[tuple[int, float]]]  # metric -> (epoch, value)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(buffer := BytesIO(), format="png", bbox_inches="tight")
    write_whole(path, [buffer.getvalue()], sync=False)


def learning_curves(history: History, *, best_epoch: int) -> Figure:
    """Draw loss, accuracy and AUROC of training and validation over the epochs."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (metric, title) in zip(
        figure.subplots(1, 3), {"loss": "Loss", "accuracy": "Accuracy", "auroc": "AUROC"}.items(), strict=True
    ):
        for stage, label in {"train": "training", "val": "validation"}.items():
            points = history.get(f"{stage}/{metric}", [])
            axes.plot(*zip(*points, strict=True) if points else ([], []), "o-", ms=3, color=COLOURS[stage], label=label)
        axes.axvline(best_epoch, color=LINE, ls="--", lw=1, label=f"epoch {best_epoch}: the model")
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return figure


def overlaid_curves(histories: Mapping[str, Sequence[History]]) -> Figure:
    """Draw a line for each labelled group of runs, the mean where there are several, over each run as a faint one."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    colours = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
    for axes, (metric, title) in zip(figure.subplots(1, len(OVERLAID)), OVERLAID.items(), strict=True):
        for place, (label, runs) in enumerate(histories.items()):
            curves = [dict(run[metric]) for run in runs if run.get(metric)]
            if curves:
                _curve_of_group(axes, curves, label, colours[place % len(colours)])
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _curve_of_group(axes: Axes, curves: list[dict[int, float]], label: str, colour: tuple[float, float, float]) -> None:
    for curve in curves if len(curves) > 1 else []:
        axes.plot(list(curve), list(curve.values()), color=colour, alpha=0.25, lw=0.8)
    epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
    mean = [float(np.mean([curve[epoch] for curve in curves])) for epoch in epochs]
    axes.plot(epochs, mean, "o-", ms=3, color=colour, label=label)


def confusion_matrix(predictions: pd.DataFrame, *, threshold: float, classes: Classes = CLASSES) -> Figure:
    """Draw counts, with the share of each true class."""
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

    called = predictions["probability"] >= threshold
    counts = confusion_matrix(predictions["label"], called, labels=[0, 1])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(4.6, 4), layout="constrained")
    display = ConfusionMatrixDisplay(shares, display_labels=classes)
    display.plot(ax=figure.subplots(), cmap="Blues", colorbar=False, im_kw={"vmin": 0, "vmax": 1})
    for text, count, share in zip(display.text_.flat, counts.flat, shares.flat, strict=True):
        text.set(text=f"{count}\n{share:.1%}", fontsize=13, color="white" if share > 0.5 else "black")
    title = f"{_basis(predictions)}, threshold {threshold:.4g}"
    display.ax_.set(xlabel="called", ylabel="truth", title=title)
    display.ax_.set_yticks([0, 1], classes, rotation=90, va="center")
    display.ax_.grid(visible=False)
    return figure


def roc_and_precision_recall(predictions: pd.DataFrame, *, threshold: float) -> Figure:
    """Draw both curves, with the threshold's point on each."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    label, score = predictions["label"], predictions["probability"]
    called = score >= threshold
    recall = float(called[label == 1].mean())
    figure = Figure(figsize=(9, 4), layout="constrained")
    roc, pr = figure.subplots(1, 2)
    fpr, tpr, _ = roc_curve(label, score)
    roc.plot(fpr, tpr, color=COLOURS["val"])
    roc.plot([0, 1], [0, 1], color=LINE, lw=1)
    roc.plot([float(called[label == 0].mean())], [recall], "o", color=COLOURS["PNEUMONIA"], label=f"at {threshold:g}")
    roc.set(xlabel="1 - specificity", ylabel="sensitivity", title=f"ROC, AUROC {roc_auc_score(label, score):.4f}")
    roc.legend(frameon=False, loc="lower right")
    precision, sensitivity, _ = precision_recall_curve(label, score)
    pr.plot(sensitivity, precision, color=COLOURS["val"])
    pr.axhline(label.mean(), color=LINE, lw=1)
    if called.any():
        pr.plot([recall], [float(label[called].mean())], "o", color=COLOURS["PNEUMONIA"])
    title = f"Precision and recall, average precision {average_precision_score(label, score):.4f}"
    pr.set(xlabel="sensitivity (recall)", ylabel="precision", title=title, ylim=(0, 1.02))
    figure.supxlabel(_basis(predictions), fontsize=9, color="#666666")
    return figure


def worst_mistakes(predictions: pd.DataFrame, images: Gray, *, threshold: float, classes: Classes = CLASSES) -> Figure:
    """Show the images that were called wrong with most confidence; the table's index numbers the images (N, H, W)."""
    wrong = predictions[(predictions["probability"] >= threshold) != (predictions["label"] == 1)]
    wrong = wrong.assign(miss=(wrong["probability"] - wrong["label"]).abs()).nlargest(MISTAKES, "miss")
    facts = zip(wrong["label"], wrong["probability"], wrong["patient"], strict=True)
    titles = [f"{classes[label]}\ncalled with p={probability:.3f}\n{patient}" for label, probability, patient in facts]
    colours = [COLOURS[CLASSES[label]] for label in wrong["label"]]  # by label, whatever the names
    return grid(images[wrong.index.to_numpy(np.int64)], titles, colours, empty="no mistakes at this threshold")


def class_balance(records: pd.DataFrame, *, classes: Classes = CLASSES) -> Figure:
    """Draw the number of images of each class in each split."""
    counts = pd.crosstab(records["split"], records["class_name"]).reindex(columns=list(classes), fill_value=0)
    counts = counts.loc[[split for split in ("train", "val", "test") if split in counts.index]]
    figure = Figure(figsize=(2.8 * len(counts) + 1, 3.4), layout="constrained")
    for axes, (split, row) in zip(np.atleast_1d(figure.subplots(1, len(counts))), counts.iterrows(), strict=True):
        bars = axes.bar(classes, row, color=[COLOURS[name] for name in CLASSES])
        axes.bar_label(bars, [f"{n}\n{n / max(1, row.sum()):.0%}" for n in row], fontsize=9)
        axes.set(title=f"{split}: {row.sum()} images")
        axes.margins(y=0.2)
        axes.grid(visible=False, axis="x")
    return figure


def sizes_and_modes(records: pd.DataFrame, *, classes: Classes = CLASSES) -> Figure:
    """Draw the distributions of image and file sizes by class."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    megapixels, kilobytes = figure.subplots(1, 2)
    for label, name in enumerate(classes):
        part = records[records["label"] == label]
        for axes, values in ((megapixels, part["width"] * part["height"] / 1e6), (kilobytes, part["bytes"] / 1e3)):
            weights = np.full(len(values), 1 / max(1, len(values)))
            axes.hist(values, bins=30, weights=weights, alpha=0.6, color=COLOURS[CLASSES[label]], label=name)
    megapixels.set(title="Size of the images", xlabel="megapixels", ylabel="share of the class")
    kilobytes.set(title="Size of the files", xlabel="kilobytes")
    kilobytes.legend(frameon=False)
    return figure


def sample_grid(images: Gray, records: pd.DataFrame) -> Figure:
    """Show images (N, H, W) with subtype and patient."""
    titles = [f"{row.subtype}\n{row.patient}" for row in records.itertuples()]
    return grid(images, titles, [COLOURS[CLASSES[label]] for label in records["label"]])


def grid(images: Gray, titles: list[str], colours: list[str], *, empty: str = "nothing to show") -> Figure:
    """Show (N, H, W) images, six a row, with a coloured title each."""
    if not len(images):
        figure = Figure(figsize=(6, 1))
        figure.text(0.5, 0.5, empty, ha="center", va="center")
        return figure
    rows = -(-len(images) // 6)
    figure = Figure(figsize=(12, 2.6 * rows), layout="constrained")
    for place, axes in enumerate(figure.subplots(rows, 6, squeeze=False).flat):
        axes.set_axis_off()
        if place < len(images):
            axes.imshow(images[place], cmap="gray", vmin=0, vmax=255)
            axes.set_title(titles[place], fontsize=8, color=colours[place], loc="center")
    return figure


def _basis(predictions: pd.DataFrame) -> str:
    return f"{len(predictions)} images of {predictions['patient'].nunique()} patients"
