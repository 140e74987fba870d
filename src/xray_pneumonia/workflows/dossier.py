"""The dossier of a judged model: numbers, figures and the one report, written into a run."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from xray_pneumonia.evaluation import gradcam, predictions
from xray_pneumonia.evaluation.assessment import Judgement
from xray_pneumonia.evaluation.cases import KINDS
from xray_pneumonia.evaluation.comparison import Difference
from xray_pneumonia.evaluation.intervals import Estimate
from xray_pneumonia.evaluation.report import figures, figures_evaluation
from xray_pneumonia.evaluation.report import text as wording
from xray_pneumonia.evaluation.report.build import render
from xray_pneumonia.evaluation.report.checklist import fill
from xray_pneumonia.evaluation.report.model_card import LIMITS
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.tracking.ledger import Opening
from xray_pneumonia.tracking.run import Run
from xray_pneumonia.types import Gray


@dataclass
class Dossier:
    """What is known beside the judgement; what was not asked for or cannot be had stays empty.

    Args:
        model: what the models are called.
        split: val, shift, test or external.
        run_ids: of the models.
        facts: rows of the model card, by name.
        answers: to the checklist, by key.
        openings: of these images, the present one last.
        chosen_after: for each model, how often a test had been opened for its experiment before it was trained.
        leaks: images whose bytes were trained on; None where unknown.
        elsewhere: images whose film is in another split of the folder too; None where there is no other.
        rival: the model that is compared.
    """

    model: str
    split: str
    run_ids: list[str]
    facts: dict[str, str]
    answers: dict[str, str]
    openings: list[Opening] = field(default_factory=list)
    chosen_after: dict[str, int] = field(default_factory=dict)
    leaks: int | None = None
    elsewhere: int | None = None
    shortcuts: dict[str, Estimate] = field(default_factory=dict)
    robustness: pd.DataFrame | None = None
    robustness_images: int = 0
    gate: list[tuple[str, int, float]] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    rival: str = ""
    maps: dict[str, float | str] = field(default_factory=dict)
    pictures: dict[str, Figure] = field(default_factory=dict)

    @property
    def leakage(self) -> str:
        """What makes the figures flatter, or may; nothing where nothing was found."""
        found = []
        if self.leaks:
            found.append(f"Of these images, {self.leaks} are, byte for byte, images the model was trained on.")
        if self.elsewhere:
            found.append(f"Of these images, {self.elsewhere} show a film that is in another split of the folder too.")
        if found:
            found.append(f"The figures flatter{'' if self.leaks else ' if the model was trained on them'}.")
        return " ".join(found)

    @property
    def leak_check(self) -> str:
        """What was looked for, and what was found."""
        known = ["not looked for by their bytes: the model does not list them"]
        if self.leaks is not None:
            known = [f"{self.leaks}, by their bytes"]
        if self.elsewhere is not None:
            known.append(f"{self.elsewhere} by bytes or looks in other splits of the folder")
        return "; ".join(known)


def write_dossier(
    run: Run, dossier: Dossier, judgement: Judgement, images: Gray, settings: EvaluationSettings
) -> tuple[str, Path]:
    """Write below `evaluation/<split>/` of a run: the numbers always, pictures and report where they are asked for.

    Args:
        run: that keeps it.
        dossier: what is known beside the judgement.
        judgement: the numbers.
        images: (N, H, W), row i is that of the judgement's table.
        settings: what is asked for.

    Returns:
        What a reader should open first: what it is, and where.
    """
    folder = f"evaluation/{dossier.split}"
    numbers = run.path(f"{folder}/evaluation.json")
    numbers.write_text(_as_json(dossier, judgement), encoding="utf-8")
    predictions.write(judgement.table[list(predictions.COLUMNS)], run.path(f"{folder}/predictions.csv"))
    if not settings.report:
        return "Numbers", numbers
    pictures = _pictures(dossier, judgement, images, settings) | dossier.pictures
    for name, picture in pictures.items():
        figures.save(picture, run.path(f"{folder}/figures/{name}.png"))
    page = render(
        "evaluation.html",
        figures=pictures,
        dossier=dossier,
        judgement=judgement,
        summary=wording.summary(judgement, split=dossier.split),
        seed_figure=wording.small_sample(right=15, images=16),
        checklist=fill(dossier.answers),
        words=wording,
        case_kinds=KINDS,
        uniform_border=gradcam.UNIFORM,
        limits=LIMITS,
    )
    written = run.path(f"{folder}/report.html")
    written.write_text(page, encoding="utf-8")
    return "Report", written


def _pictures(dossier: Dossier, judgement: Judgement, images: Gray, settings: EvaluationSettings) -> dict[str, Figure]:
    table, threshold = judgement.table.reset_index(drop=True), judgement.decision.threshold
    pictures = {
        "roc": figures_evaluation.roc_with_band(judgement, seed=settings.seed),
        "reliability": figures_evaluation.reliability_diagram(judgement),
        "confusion_matrix": figures.confusion_matrix(table, threshold=round(threshold, 4)),
        "coverage": figures_evaluation.coverage_and_accuracy(judgement),
        "worst_mistakes": figures.worst_mistakes(table, images, threshold=threshold),
    }
    if judgement.subgroups:
        rows = [(f"{one.value} ({one.images})", one.metrics["sensitivity"]) for one in judgement.subgroups]
        overall = judgement.at_point["sensitivity"].value
        pictures["subgroups"] = figures_evaluation.forest(rows, title="Sensitivity by subgroup", reference=overall)
    if dossier.shortcuts:
        rows = [("this model", judgement.delong), *dossier.shortcuts.items()]
        pictures["shortcuts"] = figures_evaluation.forest(rows, title="AUROC beside shortcuts", reference=0.5)
    if dossier.robustness is not None:
        pictures["robustness"] = figures_evaluation.robustness_curves(dossier.robustness)
    return pictures


def _as_json(dossier: Dossier, judgement: Judgement) -> str:
    """Keep every number for machines."""
    known: dict[str, Any] = {
        "model": dossier.model,
        "split": dossier.split,
        "run_ids": dossier.run_ids,
        "images": judgement.images,
        "patients": judgement.patients,
        "openings": len(dossier.openings),
        "leaks": dossier.leaks,
        "elsewhere": dossier.elsewhere,
        "decision": asdict(judgement.decision),
        "at_operating_point": {name: asdict(one) for name, one in judgement.at_point.items()},
        "at_0.5": {name: asdict(one) for name, one in judgement.at_half.items()},
        "uncalibrated": {name: asdict(one) for name, one in judgement.uncalibrated.items()},
        "delong": asdict(judgement.delong),
        "prevalence": [asdict(one) for one in judgement.worth],
        "subgroups": [asdict(one) for one in judgement.subgroups],
        "shortcuts": {name: asdict(one) for name, one in dossier.shortcuts.items()},
        "gate": dossier.gate,
        "maps": dossier.maps,
        "differences": [asdict(one) for one in dossier.differences],
        "robustness": [] if dossier.robustness is None else dossier.robustness.to_dict("records"),
    }
    return json.dumps(_finite(known), indent=2, default=float)


def _finite(tree: Any) -> Any:
    """Replace NaN, which is no JSON, by null."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not np.isfinite(tree) else tree
