"""Runs `xray evaluate`: assesses a trained model on a split, with intervals, in one report."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from typing_extensions import TypedDict

from xray_pneumonia.config import Node, anchor, build, check, leaves, plain
from xray_pneumonia.data.audit import Broken
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.evaluation.metrics import METRICS
from xray_pneumonia.evaluation.report.build import NUMBERS, PAGE, Context, Report, Rival, assess_and_report
from xray_pneumonia.evaluation.report.text import SPLITS, number, times
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.stored_config import load_stored
from xray_pneumonia.tracking.ledger import Opening, opened_before, record_opening
from xray_pneumonia.tracking.provenance import collect
from xray_pneumonia.tracking.run import Run, start_run
from xray_pneumonia.tracking.store import masked, open_store
from xray_pneumonia.training import performance
from xray_pneumonia.workflows.contenders import find, find_rival, require_comparable
from xray_pneumonia.workflows.ensemble import Ensemble
from xray_pneumonia.workflows.evaluation_data import (
    RECORD_COLUMNS,
    HeldOut,
    Split,
    learn_gate,
    open_split,
    training_leaks,
)

DRIFT = 0.05  # logits of one model on one image differ less between machines
log = logging.getLogger(__name__)


class EvaluationFolder(TypedDict):
    """The keys of `data`."""

    root: str | None
    broken: Broken | None


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The top-level keys of evaluate.yaml."""

    home: str
    run_id: str | list[str] | None
    model: str | None
    split: Split
    compare_to: str | list[str] | None
    operating_point: str
    data: EvaluationFolder
    evaluation: Node
    tracking: Node


def main(cfg: DictConfig) -> None:
    """Evaluate and print."""
    anchor(cfg)
    values = check(cfg, EvaluateConfig)
    settings: EvaluationSettings = build(cfg.evaluation)
    home, tracking = Path(cfg.home), build(cfg.tracking)
    store = open_store(tracking, home=home)
    performance.prepare_process(keep_freed_memory=True, threads=None)
    if (cfg.run_id is None) == (cfg.model is None):
        raise InputError("run_id, model: name one of them: run_id=ID, or model=NAME of one that `xray predict` reads")
    model = find(store, cfg, settings, run_id=cfg.run_id, name=cfg.model)
    rival = find_rival(store, cfg, settings)
    held_out = open_split(
        model.first.run,
        cfg.split,
        root=cfg.data.root,
        broken=cfg.data.broken,
        home=home,
        image_size=model.first.card.image_size,
        validation_ids=None if model.validation is None else set(model.validation["id"]),
    )
    require_comparable(held_out, model, rival)
    run_ids = [member.run.run_id for member in model.members]
    tags = {"verb": "evaluate", "evaluates": ",".join(run_ids), "split": cfg.split}
    if len(run_ids) == 1 and model.validation is not None:
        tags["mlflow.parentRunId"] = run_ids[0]
    store = model.first.run.store
    name = tracking.run_name or f"{cfg.split}: {model.name}"[:250]
    with start_run(store, name=name, tags=tags, system_metrics=False) as run:
        _record_origin(run, cfg, values, held_out)
        folder = run.path(f"evaluation/{cfg.split}/{NUMBERS}").parent
        report = evaluate(run, folder, model, held_out, settings, rival=rival)
    _print(report, Console(width=None if Console().is_terminal else 100))
    print(f"Report: {folder / PAGE}" if settings.report else f"Numbers: {folder / NUMBERS}")
    print(f"See it: mlflow ui --backend-store-uri {masked(store.uri)}")
    print(f"run_id={run.run_id} {cfg.split}/auroc={report.assessment.at_point['auroc'].value:.6f}", flush=True)


def evaluate(
    run: Run, folder: Path, model: Ensemble, held_out: HeldOut, settings: EvaluationSettings, *, rival: Ensemble | None
) -> Report:
    """Open the split, predict, assess and record; the ledger is written before anything is predicted."""
    openings = _open(model, held_out)
    table = _predict(model, held_out)
    context = _context(model, held_out, openings)
    report = assess_and_report(
        folder,
        table,
        held_out.images,
        model.decision,
        settings,
        context=context,
        net=model.first.net,
        predict=model.logits,
        gate=(model.first.gate or learn_gate(held_out)) if settings.report else None,
        validation=table if held_out.split == "val" and model.validation is None else model.validation,
        rival=None if rival is None else _predict_rival(rival, held_out, table),
    )
    run.log_metrics({f"{held_out.split}/{name}": value for name, value in report.assessment.metrics().items()})
    run.set_tags({"openings": len(openings), "chosen_after_opening": any(context.chosen_after.values())})
    return report


def _record_origin(run: Run, cfg: DictConfig, values: dict[str, Any], held_out: HeldOut) -> None:
    public = cfg.copy()
    public.tracking.uri = masked(cfg.tracking.uri) if cfg.tracking.uri else None
    run.log_config(OmegaConf.to_yaml(public, resolve=True))
    run.log_params(dict(leaves(plain(public))))
    run.log_provenance(collect())
    run.set_tags({"records_fingerprint": held_out.fingerprint})
    run.log_dataset(
        name=Path(held_out.root).name, digest=held_out.fingerprint, source=held_out.root, stage=held_out.split
    )


def _open(model: Ensemble, held_out: HeldOut) -> list[Opening]:
    """Write the opening to the ledger, before anything is predicted."""
    run = model.first.run
    found = record_opening(
        run.store,
        split=held_out.split,
        fingerprint=held_out.fingerprint,
        contents=held_out.contents,
        experiment=run.store.experiment_name,
        config_sha256=",".join(member.run.tags.get("config_sha256", "") for member in model.members),
        runs=[member.run.run_id for member in model.members],
    )
    if len(found) > 1:
        log.warning(
            "these images have been opened %s before; the experiment `ledger` says by whom", times(len(found) - 1)
        )
    return found


def _predict(model: Ensemble, held_out: HeldOut) -> pd.DataFrame:
    logits = model.logits(held_out.images, what="Predicting")
    table = predictions.tabulate(held_out.records, held_out.records.index.to_numpy(), logits)
    predictions.require_usable(table, name=f"split={held_out.split}")
    if held_out.split == "val" and model.validation is not None:
        _require_unaltered(model.first.run.run_id, model.validation, table)
    known = [column for column in RECORD_COLUMNS if column in held_out.records]
    return table.join(held_out.records[known])


def _require_unaltered(run_id: str, validation: pd.DataFrame, table: pd.DataFrame) -> None:
    """Refuse a model that does not give the predictions that its own run recorded."""
    recorded = validation.set_index("id")["logit"].loc[table["id"]].to_numpy()
    drift = float(abs(recorded - table["logit"].to_numpy()).max())
    if drift > DRIFT * max(1.0, float(abs(recorded).max()) / 10):
        raise InputError(
            f"run_id={run_id}: its model does not give the predictions of its run (logits differ by up "
            f"to {drift:.3g}); weights or images were altered; train it again"
        )


def _predict_rival(rival: Ensemble, held_out: HeldOut, table: pd.DataFrame) -> Rival:
    table = table.assign(logit=rival.logits(held_out.images, what="Predicting with the other model"))
    predictions.require_usable(table, name="compare_to")
    return Rival(rival.name, rival.decision.calibration.apply(table), rival.decision.threshold)


def _context(model: Ensemble, held_out: HeldOut, openings: list[Opening]) -> Context:
    runs = [member.run for member in model.members]
    counts = {
        run.run_id: opened_before(run.store, experiment=run.store.experiment_name, started=run.started) for run in runs
    }
    facts = {}
    if len(runs) > 1:
        facts["Ensemble"] = f"the mean of the calibrated logits of {len(runs)} models, judged as one"
    if model.validation is None:
        facts["Origin"] = (
            "a folder, not a run of this store, whose ledger cannot tell what was opened before its training"
        )
    return Context(
        model=model.name,
        split=held_out.split,
        run_ids=[run.run_id for run in runs],
        config=plain(load_stored(runs[0].config, origin=f"run_id={runs[0].run_id}")),
        tags=runs[0].tags,
        facts=facts,
        openings=[asdict(opening) | {"when": opening.when} for opening in openings],
        chosen_after={run_id: count for run_id, count in counts.items() if count},
        leaks=training_leaks(runs[0], held_out.records) if held_out.split != "val" else None,
        elsewhere=held_out.elsewhere,
    )


def _print(report: Report, console: Console) -> None:
    assessment, context = report.assessment, report.context
    title = (
        f"{SPLITS[context.split].capitalize()}: {assessment.images} images of {assessment.patients} patients; "
        f"operating point {assessment.decision.threshold:.4f} ({assessment.decision.policy})"
    )
    rows = Table(title=title, title_justify="left", title_style="bold")
    for column in ("metric", "value (95 % interval)", "at 0.5", *(["other", "p"] if report.differences else [])):
        rows.add_column(column)
    differences = {one.name: one for one in report.differences}
    for name, metric in METRICS.items():
        other = [differences[name].second, differences[name].p_value] if differences else []
        numbers = [number(value) for value in (assessment.at_half[name].value, *other)]
        rows.add_row(metric.title, str(assessment.at_point[name]), *numbers)
    console.print(rows)
    if context.split == "val":
        console.print("Calibration and operating point were chosen on these images, so they flatter.")
    if context.openings:
        count = len(context.openings)
        when = "just now" if count == 1 else "this one included"
        console.print(f"Ledger: these images were opened {times(count)}, {when}.")
    if context.leakage:
        console.print(context.leakage)
    for run_id, count in context.chosen_after.items():
        console.print(f"Run {run_id} was trained after a test had been opened {times(count)} for its experiment.")
