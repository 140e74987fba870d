"""Assesses a model on a split, and writes the numbers, the figures and one self-contained HTML report."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader

from xray_pneumonia.evaluation import predictions
from xray_pneumonia.evaluation.assessment import Assessment, Decision, assess
from xray_pneumonia.evaluation.comparison import Difference, compare
from xray_pneumonia.evaluation.drift import Drift, compare_with_home, describe
from xray_pneumonia.evaluation.intervals import Estimate
from xray_pneumonia.evaluation.metrics import METRICS, table_metrics
from xray_pneumonia.evaluation.quality import InputCheck
from xray_pneumonia.evaluation.report import text
from xray_pneumonia.evaluation.report.model_card import checklist_answers, fill_checklist, limitations, model_facts
from xray_pneumonia.evaluation.report.numbers import as_json
from xray_pneumonia.evaluation.robustness import robustness, sample
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.evaluation.shortcuts import shortcuts
from xray_pneumonia.evaluation.subgroups import Answers
from xray_pneumonia.evaluation.synthetic_outliers import out_of_distribution
from xray_pneumonia.types import CLASSES, Classes, Gray, Vector, spoken

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xray_pneumonia.evaluation.gradcam import Explanation, Net

NUMBERS, PAGE = "evaluation.json", "report.html"
GATE_COLUMNS = ("gate_score", "gate_reason")  # of the written predictions, in a model with a gate
GATED = 60  # images that out-of-distribution inputs are made from
PAGES = Environment(
    loader=PackageLoader("xray_pneumonia.evaluation.report", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What is known of a model and a split besides the predictions.

    Args:
        model: name of the model.
        split: val, shift, test or external.
        run_ids: of the model's runs.
        config: of the training, plain values.
        tags: of its run.
        facts: more rows for the model card.
        openings: of any of these images, from the ledger, the present one last: `when`, `who`, `split`, `experiment`,
            `runs`, `shared` (images).
        chosen_after: for each run, how often a test had been opened in its store before it was trained.
        leaks: images whose bytes were trained on; None where unknown.
        elsewhere: images that are in another split of the folder too; None where there is no other.
        classes: names of labels 0 and 1.
        left_out: how many images of the folder are of which other class; empty for none.
        corrections: what `data.corrections` changed in the whole folder; empty for nothing.
    """

    model: str
    split: str
    run_ids: list[str]
    config: Mapping[str, Any]
    tags: Mapping[str, str]
    facts: Mapping[str, str] = field(default_factory=dict)
    openings: Sequence[Mapping[str, str]] = ()
    chosen_after: Mapping[str, int] = field(default_factory=dict)
    leaks: int | None = None
    elsewhere: int | None = None
    classes: Classes = CLASSES
    left_out: str = ""
    corrections: str = ""

    @property
    def leakage(self) -> str:
        """Word what makes the figures flatter, or may; empty where nothing was found."""
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
        """Word which leaks were looked for, and how many were found."""
        known = ["not looked for by their bytes: the model does not list them"]
        if self.leaks is not None:
            known = [f"{self.leaks}, by their bytes"]
        if self.elsewhere is not None:
            known.append(f"{self.elsewhere} by bytes or looks in other splits of the folder")
        return "; ".join(known)


@dataclass(frozen=True)
class Rival:
    """Another model on the same images: its name, its calibrated predictions and its operating point."""

    name: str
    table: pd.DataFrame
    threshold: float


@dataclass(kw_only=True)
class Report:
    """All results of an evaluation; what was not asked for or cannot be had stays empty.

    `gate` holds kinds of input, their images and the share stopped; `drift` compares with the home that the gate knows.
    """

    context: Context
    assessment: Assessment
    rival: str = ""
    differences: list[Difference] = field(default_factory=list)
    robustness: pd.DataFrame | None = None
    robustness_images: int = 0
    robustness_patients: int = 0
    shortcuts: dict[str, Estimate] = field(default_factory=dict)
    gate: list[tuple[str, int, float]] = field(default_factory=list)
    drift: Drift | None = None
    maps: "Explanation | None" = None
    parts: list[Answers] = field(default_factory=list)

    @property
    def corrections(self) -> str:
        """Word which labels were corrected, and the figures by both states; empty where none were."""
        found, table = self.context.corrections, self.assessment.table
        return text.corrected(found, table, self.published) if found and "published" in table else ""

    @property
    def published(self) -> dict[str, float]:
        """Measure by the labels as published, on the images that are not excluded."""
        table = self.assessment.table
        labels = table.get("published", table["label"])
        return table_metrics(table.assign(label=labels), threshold=self.assessment.decision.threshold)


def assess_and_report(
    folder: Path,
    table: pd.DataFrame,
    images: Gray,
    decision: Decision,
    settings: EvaluationSettings,
    *,
    context: Context,
    net: "Net",
    predict: Callable[[Gray], Vector],
    check: InputCheck | None,
    validation: pd.DataFrame | None,
    rival: Rival | None = None,
    parts: Sequence[Answers] = (),
) -> Report:
    """Assess a model and write what was found into a folder: the numbers always, figures and page where asked for.

    Args:
        folder: gets `evaluation.json`, `predictions.csv` and, with `settings.report`, `report.html` and `figures`.
        table: raw predictions on the split, with `GATE_COLUMNS` if there is a gate; columns of the records may follow.
        images: (N, H, W) of the same rows.
        decision: what was chosen on validation.
        settings: what is asked for.
        context: what is known of model and split besides.
        net: whose heat maps are drawn; of several models the first.
        predict: (N, H, W) -> raw logits (N,), for the corruptions.
        check: the model's gate; None where there is none.
        validation: raw predictions on validation, where they are known.
        rival: another model to compare with.
        parts: what is answered where films differ from the rest.
    """
    assessment = assess(table, decision, settings, validation=validation)
    report = Report(context=context, assessment=assessment, parts=[*parts])
    if rival is not None:
        report.rival, report.differences = rival.name, _compare(assessment, rival, settings)
    report.drift = _drift(report, images, check)
    if settings.robustness_images != 0:
        _corrupt(report, images, settings, predict=predict)
    if settings.report:
        _examine_images(report, images, settings, net=net, check=check)
        _write_page(folder, report, images, settings)
    (folder / NUMBERS).write_text(as_json(report), encoding="utf-8")
    predictions.write(assessment.table.filter([*predictions.COLUMNS, *GATE_COLUMNS]), folder / "predictions.csv")
    return report


def _corrupt(report: Report, images: Gray, settings: EvaluationSettings, *, predict: Callable[[Gray], Vector]) -> None:
    """Assess some of the images under corruptions."""
    table, decision = report.assessment.table, report.assessment.decision
    rows = sample(table, images=settings.robustness_images, seed=settings.seed)
    some = table.iloc[rows]
    report.robustness_images, report.robustness_patients = len(rows), int(some["patient"].nunique())
    report.robustness = robustness(some, images[rows], decision, predict=predict, seed=settings.seed)


def _drift(report: Report, images: Gray, check: InputCheck | None) -> Drift | None:
    if check is None or check.gate.home is None:
        return None
    point, shown = report.assessment.decision.threshold, report.assessment.decision.calibration.prevalence
    films = describe(report.assessment.table, images, threshold=point, prevalence=shown)
    return compare_with_home(films, check.gate.home, positive=report.context.classes[1])


def _compare(assessment: Assessment, rival: Rival, settings: EvaluationSettings) -> list[Difference]:
    return compare(
        assessment.table,
        rival.table,
        thresholds=(assessment.decision.threshold, rival.threshold),
        replicates=settings.replicates,
        seed=settings.seed,
    )


def _examine_images(
    report: Report, images: Gray, settings: EvaluationSettings, *, net: "Net", check: InputCheck | None
) -> None:
    """Add shortcut baselines, the gate's rates and the heat maps."""
    from xray_pneumonia.evaluation.gradcam import Explanation, explain

    table, threshold = report.assessment.table, report.assessment.decision.threshold
    report.shortcuts = shortcuts(table, images)
    report.gate = [] if check is None else _gate_rates(check, table, images, seed=settings.seed)
    report.maps = Explanation()
    if settings.maps:
        report.maps = explain(net, table, images, threshold=threshold, each=settings.maps, seed=settings.seed)


def _gate_rates(check: InputCheck, table: pd.DataFrame, images: Gray, *, seed: int) -> list[tuple[str, int, float]]:
    rows = np.linspace(0, len(images) - 1, min(GATED, len(images))).astype(int)
    own = ("films of this split", len(table), float(table["gate_score"].gt(1).mean()))
    strangers = out_of_distribution(images[rows], seed=seed).items()
    return [own, *((name, len(kind), 1 - float(check.passes(kind).mean())) for name, kind in strangers)]


def _write_page(folder: Path, report: Report, images: Gray, settings: EvaluationSettings) -> None:
    from xray_pneumonia.evaluation.gradcam import CASES, UNIFORM
    from xray_pneumonia.evaluation.report import assessment_figures, figures

    context, assessment = report.context, report.assessment
    answers = checklist_answers(
        context.config, assessment, split=context.split, openings=len(context.openings), classes=context.classes
    )
    facts = model_facts(context.config, context.tags, assessment, settings, classes=context.classes)
    drawn = assessment_figures.draw(report, images, seed=settings.seed)
    for name, figure in drawn.items():
        figures.save(figure, folder / "figures" / f"{name}.png")
    page = render(
        "evaluation.html",
        figures=drawn,
        report=report,
        context=context,
        assessment=assessment,
        facts={**facts, **context.facts},
        summary=text.summary(assessment, split=context.split, classes=context.classes),
        seed_figure=text.small_sample(right=15, images=16),
        checklist=fill_checklist(answers),
        words=text,
        metrics=METRICS,
        case_kinds=CASES,
        uniform_border=UNIFORM,
        limitations=limitations(context.classes),
        negative=spoken(context.classes[0]),
        positive=spoken(context.classes[1]),
    )
    (folder / PAGE).write_text(page, encoding="utf-8")


def render(page: str, *, figures: Mapping[str, "Figure"], **values: Any) -> str:
    """Fill in a template of this folder; every value is escaped, figures (by title) are embedded as PNG."""
    return PAGES.get_template(page).render(figures={title: _inline(one) for title, one in figures.items()}, **values)


def _inline(figure: "Figure") -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", dpi=90)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
