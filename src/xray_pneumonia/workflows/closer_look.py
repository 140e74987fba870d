"""What needs the images themselves: the gate, shortcuts, corruptions, heat maps."""

from collections.abc import Callable

import numpy as np
from torch import nn

from xray_pneumonia.evaluation import gradcam
from xray_pneumonia.evaluation.assessment import Judgement
from xray_pneumonia.evaluation.cases import cases
from xray_pneumonia.evaluation.input_gate import Gate, fit_gate, strangers
from xray_pneumonia.evaluation.metrics import Vector
from xray_pneumonia.evaluation.report import figures_evaluation
from xray_pneumonia.evaluation.robustness import robustness, sample
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.evaluation.shortcuts import shortcuts
from xray_pneumonia.types import Gray
from xray_pneumonia.workflows.dossier import Dossier
from xray_pneumonia.workflows.evaluation_data import HeldOut

SHOWN = 60  # films turned into strangers for the gate
MAPPED = 200  # films whose maps are measured
COLOURS = {"found": "#2f7d4f", "cleared": "#2f7d4f", "missed": "#c0392b", "alarmed": "#c0392b", "unsure": "#8a6d00"}


def look_closer(
    dossier: Dossier,
    judgement: Judgement,
    held_out: HeldOut,
    settings: EvaluationSettings,
    *,
    net: nn.Module,
    predict: Callable[[Gray], Vector],
    gate: Gate | None,
) -> None:
    """Add to the dossier what needs the images; without a report, the corruptions alone.

    Args:
        dossier: gets it.
        judgement: of the model.
        held_out: the images.
        settings: what is asked for.
        net: whose maps are drawn; of several models the first.
        predict: (N, H, W) -> raw logits (N,).
        gate: of the model; None where none can be had.
    """
    table, images = judgement.table, held_out.images
    if settings.robustness_images != 0:
        rows = sample(table, images=settings.robustness_images, seed=settings.seed)
        dossier.robustness_images = len(rows)
        dossier.robustness = robustness(
            table.iloc[rows], images[rows], judgement.decision, predict=predict, seed=settings.seed
        )
    if not settings.report:
        return
    dossier.shortcuts = shortcuts(table, images)
    if gate is not None:
        dossier.gate = _judge_gate(gate, images, seed=settings.seed)
    _draw_maps(dossier, net, judgement, images, settings)


def learn_gate(held_out: HeldOut) -> Gate | None:
    """Learn the look of films, where training and validation films are at hand."""
    if held_out.films is None or held_out.validation is None:
        return None
    return fit_gate(held_out.films, held_out.validation)


def _judge_gate(gate: Gate, images: Gray, *, seed: int) -> list[tuple[str, int, float]]:
    """Show the gate the films and what is none: kind, how many, and the share that it stops."""
    rows = np.linspace(0, len(images) - 1, min(SHOWN, len(images))).astype(int)
    kinds = strangers(images[rows], seed=seed)
    stopped = {name: 1 - float(gate.passes(strange).mean()) for name, strange in kinds.items()}
    films = ("films of this split", len(images), 1 - float(gate.passes(images).mean()))
    return [films, *((name, len(rows), share) for name, share in stopped.items())]


def _draw_maps(
    dossier: Dossier, net: nn.Module, judgement: Judgement, images: Gray, settings: EvaluationSettings
) -> None:
    """Draw heat maps of fixed cases, and check them: attention on the border, likeness to random weights."""
    if not settings.maps:
        return
    threshold = judgement.decision.threshold
    chosen = cases(judgement.table.reset_index(drop=True), threshold=threshold, each=settings.maps)
    shown = images[chosen.index.to_numpy(np.int64)]
    maps = gradcam.grad_cam(net, shown)
    if maps is None:
        dossier.maps = {"none": "the net has no layer whose output is a map of the image, so there is nothing to show"}
        return
    some = np.linspace(0, len(images) - 1, min(MAPPED, len(images))).astype(int)
    every = gradcam.grad_cam(net, images[some])
    measured = every if every is not None else maps
    likeness = gradcam.likeness_to_random(net, shown, seed=settings.seed)
    dossier.maps = {
        "border": gradcam.border_attention(measured),
        "measured": int(measured.any(axis=(1, 2)).sum()),
        "likeness": likeness,
        "bound": gradcam.MOST_ALIKE,
    }
    if np.isnan(likeness):
        dossier.maps["none"] = (
            "the maps are withheld: nothing in these films speaks for PNEUMONIA to this model, or to nets with random "
            "weights, so there is nothing to compare"
        )
        return
    if likeness > gradcam.MOST_ALIKE:
        dossier.maps["none"] = (
            f"the maps are withheld: nets with random weights draw much the same (rank correlation {likeness:.2f}, at "
            f"most {gradcam.MOST_ALIKE:g} is allowed), so they do not show what this model has learned"
        )
        return
    titles = [f"{row.case}: {row.subtype}\np = {row.probability:.3f}\n{row.patient}" for row in chosen.itertuples()]
    colours = [COLOURS[str(case)] for case in chosen["case"]]
    dossier.pictures["heat_maps"] = figures_evaluation.heat_maps(shown, maps, titles, colours)
