"""Records an adaptation in its run: figures, report and the new bundle with its lineage; prints the result."""

import json
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from xray_pneumonia.data.audit import SHORTCUT_AUROC
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.evaluation.adaptation import TESTED, CrossFit, Measured
from xray_pneumonia.evaluation.drift import Home, describe
from xray_pneumonia.evaluation.input_gate import Gate
from xray_pneumonia.evaluation.metrics import METRICS
from xray_pneumonia.evaluation.report import text
from xray_pneumonia.evaluation.report.build import render
from xray_pneumonia.inference.bundle import GATE, WEIGHTS, Card, save_bundle
from xray_pneumonia.inference.model import TrainedModel
from xray_pneumonia.terminal import console, make_table
from xray_pneumonia.tracking.provenance import collect
from xray_pneumonia.tracking.run import Run
from xray_pneumonia.types import Gray
from xray_pneumonia.whole_files import file_sha256, private
from xray_pneumonia.workflows import training_run
from xray_pneumonia.workflows.choices import changes, parameters_of
from xray_pneumonia.workflows.evaluation_data import RECORD_COLUMNS
from xray_pneumonia.workflows.local_models import Learned, fit_gate
from xray_pneumonia.workflows.training_record import leave_evidence

PAGE, NUMBERS = "adaptation.html", "adaptation.json"
THRESHOLD, FINETUNE = "threshold", "finetune"


@dataclass(frozen=True)
class Sample:
    """The labelled films: their records, with `fold`, and images (N, H, W)."""

    root: str
    data: XRayDataModule
    films: pd.DataFrame
    images: Gray

    @property
    def basis(self) -> str:
        """Word what figures rest on."""
        patients, folds = self.films["patient"].nunique(), self.films["fold"].nunique()
        return f"{len(self.films)} films of {patients} patients, cross-validated in {folds} folds by patient"


@dataclass(frozen=True)
class Result:
    """What came out: the method, its cross-validation, the net learned from all films, and the figures."""

    method: str
    recipe: str
    fitted: CrossFit
    learned: Learned
    rows: list[Measured]
    why: str


def _sentences(result: Result, sample: Sample) -> list[str]:
    """Word what came out, for a clinician."""
    before, after = result.rows[0], result.rows[-1]
    promise = result.fitted.rule.decision.promise
    told = [result.why, text.promise(promise)]
    if not after.answered.value:
        told.append(
            f'It says "look closer" to every film; label and probability are hints. More labelled films may change '
            f"that, as would an evaluation.max_error above {promise['bound'] if promise else 1:.3f}."
        )
    told += _doubt(sample, after)
    wrong = [
        f"{row.name}: {row.answered} answered" + (f", of these wrong {row.error}" if row.error.images else "")
        for row in (before, after)
    ]
    return [*told, "On patients that nothing was fitted on, " + "; ".join(wrong) + "."]


def _doubt(sample: Sample, after: Measured) -> list[str]:
    """Say what the figures may flatter: unknown patients, and classes that were taken or stored differently."""
    audit = sample.data.audit
    known = {name: auroc for name, auroc in audit.shortcuts.items() if auroc >= SHORTCUT_AUROC}
    told = [f"{one.count} {one.message}." for one in audit.warnings if one.code == "unknown_patients"]
    if not known:
        return told
    name, auroc = max(known.items(), key=lambda item: item[1])
    return [
        *told,
        f"Facts of the files alone, which no model sees, tell the classes apart ({name}: AUROC {auroc:.2f}; this model "
        f"{after.metrics['auroc'].value:.2f}): films of the two classes were taken or stored differently, and a model "
        "may learn that instead of the finding.",
    ]


def _card(run: Run, model: TrainedModel, sample: Sample, result: Result) -> Card:
    """Fill in the card of the new model."""
    films, after = sample.films, result.rows[-1]
    count = {"images": float(len(films)), "patients": float(films["patient"].nunique())}
    evidence = {f"val/{name}": value for name, value in count.items()}
    evidence |= {f"val/{name}": after.metrics[name].value for name in ("auroc", "sensitivity", "specificity")}
    learned = count if result.method == FINETUNE else {}
    evidence |= {f"train/{name}": value for name, value in learned.items()}
    evidence = {name: value for name, value in model.card.evidence.items() if name.startswith("train/")} | evidence
    card = replace(
        model.card,
        net=result.learned.node,
        run_id=run.run_id,
        records_fingerprint=run.tags["records_fingerprint"],
        versions={name: version(name) for name in ("xray-pneumonia", "torch")},
        evidence=evidence,
        lineage=lineage_of(model, sample, result),
    )
    return card.with_decision(result.fitted.rule.decision)


def lineage_of(model: TrainedModel, sample: Sample, result: Result) -> dict[str, str]:
    """List where the new model comes from."""
    folder = model.folder
    parent = model.card.weights_sha256 or (file_sha256(folder / WEIGHTS) if folder else "unknown")
    sizes = {"images": len(sample.films), "patients": sample.films["patient"].nunique()}
    method = result.method if result.method == THRESHOLD else f"{result.method}, recipe {result.recipe}"
    known = {"parent": model.name, "parent_run": model.card.run_id, "parent_weights_sha256": parent, "method": method}
    return known | {name: str(value) for name, value in sizes.items()}


def record(run: Run, cfg: DictConfig, model: TrainedModel, sample: Sample, result: Result) -> Path:
    """Record config, data, figures, report and the new bundle; returns the report."""
    config = training_run.RunConfig.of(cfg)
    run.log_config(config.text)
    run.log_params(parameters_of(config.values) | {"chosen/method": result.method, "chosen/recipe": result.recipe})
    lineage = {f"lineage.{name}": one for name, one in lineage_of(model, sample, result).items()}
    run.set_tags({"changes": changes(), **lineage})
    run.log_provenance(collect(training_run.COMPUTING))
    training_run.write_records(run, sample.films)
    training_run.record_dataset(run, sample.films, root=config.values["data"]["root"], stage="adapt")
    columns = [*predictions.COLUMNS, "fold", "margin", "gate_score", "answered"]
    own = result.fitted.rule.apply(result.fitted.read)
    for name, table in {"val": own, "cross_fitted": result.fitted.answers}.items():
        predictions.write(table[columns].astype({"answered": int}), run.path(f"predictions/{name}.csv"))
    for row in result.rows:
        known = {name: one.value for name, one in row.metrics.items()}
        known |= {"answered": row.answered.value, "answered_error": row.error.value}
        prefix = "operating" if row is result.rows[-1] else row.name
        run.log_metrics({f"{prefix}/{name}": value for name, value in known.items() if not np.isnan(value)})
    run.log_metrics({"best/auroc": result.rows[-1].metrics["auroc"].value})
    with private(team=True):
        page = _write_report(run, model, sample, result)
    run.set_tags({training_run.DESCRIPTION: training_run.describe(run, " ".join(_sentences(result, sample)[:1]), page)})
    with TemporaryDirectory() as folder:
        save_bundle(Path(folder), result.learned.net.cpu(), _card(run, model, sample, result))
        leave_evidence(run, Path(folder))
        _gate(model, sample, result, own).write(Path(folder) / GATE)
        run.log_model(Path(folder), epoch=1, loader_module=training_run.LOADER_MODULE)
    return page


def _gate(model: TrainedModel, sample: Sample, result: Result, own: pd.DataFrame) -> Gate:
    """Fit the gate of the new model; the local films are its home."""
    gate = fit_gate(result.learned, sample.images, result.fitted.rule.limits, before=model.gate)
    known = own[[*own.columns.intersection([*RECORD_COLUMNS]), "patient", "label", "probability", "gate_score"]]
    prevalence = result.fitted.rule.decision.calibration.prevalence
    return replace(gate, home=Home.of(describe(known, sample.images, threshold=0.5, prevalence=prevalence)))


def _write_report(run: Run, model: TrainedModel, sample: Sample, result: Result) -> Path:
    place = run.path(f"evaluation/adapt/{PAGE}")
    numbers = {"rows": [asdict(row) for row in result.rows], "why": result.why, **lineage_of(model, sample, result)}
    written = json.dumps(numbers, indent=2).replace("NaN", "null")
    (place.parent / NUMBERS).write_text(written, encoding="utf-8")
    page = render(
        PAGE,
        figures={},
        title=f"{model.name} adapted to {Path(sample.root).name}",
        basis=f"{sample.basis}; {', '.join(model.card.class_names)}",
        sentences=_sentences(result, sample),
        rows=result.rows,
        names=TESTED,
        metrics=METRICS,
        words=text,
        lineage=lineage_of(model, sample, result),
    )
    place.write_text(page, encoding="utf-8")
    return place


def show(result: Result, sample: Sample) -> None:
    """Print figures before and after, and what they mean."""
    heads = ("model", *(METRICS[name].title for name in TESTED[:3]), "answered", "of these wrong", "p (AUROC)")
    rows = make_table(f"{sample.basis}; none read by what was fitted on it", heads)
    for row in result.rows:
        p_value = next((text.p(one.p_value) for one in row.against if one.name == "auroc"), "-")
        wrong = str(row.error) if row.error.images else "answers nothing"
        rows.add_row(row.name, *(str(row.metrics[name]) for name in TESTED[:3]), str(row.answered), wrong, p_value)
    console(110).print(rows, *_sentences(result, sample), sep="\n")
