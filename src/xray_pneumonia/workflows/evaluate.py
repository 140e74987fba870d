"""Runs `xray evaluate`: assesses a trained model on a split, with intervals, in one report."""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from xray_pneumonia.config import Node, build, check, plain
from xray_pneumonia.data.classes import counted
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.evaluation.comparison import Difference
from xray_pneumonia.evaluation.intervals import FEWEST
from xray_pneumonia.evaluation.metrics import METRICS, OF_RANKS
from xray_pneumonia.evaluation.report.build import NUMBERS, PAGE, Context, Report, Rival, assess_and_report
from xray_pneumonia.evaluation.report.text import SPLITS, number, official_test, p, tested, times, untold
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.inference.model import TrainedModel
from xray_pneumonia.stored_config import load_stored
from xray_pneumonia.terminal import console, make_table
from xray_pneumonia.tracking.ledger import Opening, opened_before, record_opening
from xray_pneumonia.tracking.run import Run, start_run
from xray_pneumonia.tracking.store import open_store
from xray_pneumonia.training import performance
from xray_pneumonia.types import CLASSES, OpenFraction, Positive, Text
from xray_pneumonia.whole_files import private
from xray_pneumonia.workflows.evaluation_data import (
    RECORD_COLUMNS,
    EvaluationFolder,
    HeldOut,
    Split,
    open_split,
    require_comparable,
)
from xray_pneumonia.workflows.find_model import EvaluatedModel, find_evaluated
from xray_pneumonia.workflows.stored_predictions import training_leaks
from xray_pneumonia.workflows.training_run import DESCRIPTION, describe, record_origin, summarise

DRIFT = 0.05  # logits of one model on one image differ less between machines
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The top-level keys of evaluate.yaml."""

    home: Text
    extensions: dict[str, str]
    run_id: Text | list[Text] | None
    model: Text | None
    split: Split
    compare_to: Text | list[Text] | None
    operating_point: Text
    prevalence: OpenFraction | None
    cost: Positive | None
    data: EvaluationFolder
    evaluation: Node
    tracking: Node


def main(cfg: DictConfig) -> None:
    """Evaluate and print."""
    check(cfg, EvaluateConfig)
    settings: EvaluationSettings = build(cfg.evaluation)
    home, tracking = Path(cfg.home), build(cfg.tracking)
    store = open_store(tracking, home=home, existing=bool(cfg.run_id))
    performance.prepare_process(keep_freed_memory=True, threads=None)
    evaluated, other = find_evaluated(store, cfg, settings)
    evaluated = replace(evaluated, model=evaluated.model.at(cfg.prevalence, cost=cfg.cost))
    held_out = open_split(
        evaluated.runs[0],
        cfg.split,
        folder=plain(cfg.data),  # type: ignore[arg-type]
        home=home,
        image_size=evaluated.model.card.image_size,
        validation_ids=None if evaluated.validation is None else set(evaluated.validation["id"]),
    )
    require_comparable(held_out, evaluated, other)
    run_ids = [run.run_id for run in evaluated.runs]
    tags = {"verb": "evaluate", "evaluates": ",".join(run_ids), "split": cfg.split}
    if len(run_ids) == 1 and evaluated.validation is not None:
        tags["mlflow.parentRunId"] = run_ids[0]
    store = evaluated.runs[0].store
    name = tracking.run_name or f"{cfg.split}: {evaluated.model.name}"[:250]
    with start_run(store, name=name, tags=tags, system_metrics=False) as run, private(team=True):
        record_origin(run, cfg, held_out.records, root=held_out.root, stage=held_out.split)
        folder = run.path(f"evaluation/{cfg.split}/{NUMBERS}").parent
        report = evaluate(run, folder, evaluated, held_out, settings, other=other)
    _print(report)
    print(f"Report: {folder / PAGE}" if settings.report else f"Numbers: {folder / NUMBERS}")
    print(f"See it: {run.see_it}")
    auroc = report.assessment.at_point["auroc"]
    print(f"run_id={run.run_id} {cfg.split}/auroc={untold(auroc) or format(auroc.value, '.6f')}", flush=True)


def evaluate(
    run: Run,
    folder: Path,
    evaluated: EvaluatedModel,
    held_out: HeldOut,
    settings: EvaluationSettings,
    *,
    other: EvaluatedModel | None,
) -> Report:
    """Open the split, predict, assess and record; the ledger is written before anything is predicted."""
    if evaluated.model.gate is None:
        evaluated = replace(evaluated, model=replace(evaluated.model, gate=held_out.fit_gate()))
    model = evaluated.model
    openings = _open(evaluated, held_out)
    table = _predict(evaluated, held_out)
    context = _context(evaluated, held_out, openings)
    report = assess_and_report(
        folder,
        table,
        held_out.images,
        model.decision,
        settings,
        context=context,
        net=model.require_net(),
        predict=model.uncalibrated_logits,
        check=model.input_check,
        validation=table if held_out.split == "val" and evaluated.validation is None else evaluated.validation,
        parts=held_out.answers(table, model.decision) if settings.report else [],
        rival=None if other is None else _predict_rival(other.model, held_out, table),
    )
    assessed = report.assessment
    metrics = assessed.metrics()
    if held_out.split == "val":  # the names that its training gave these numbers
        run.log_metrics({f"{'val' if name in OF_RANKS else 'operating'}/{name}": n for name, n in metrics.items()})
    else:
        run.log_metrics({f"{held_out.split}/{name}": value for name, value in metrics.items()})
    at, half = ({name: one.value for name, one in part.items()} for part in (assessed.at_point, assessed.at_half))
    result = summarise(assessed.table, at, half, assessed.decision.threshold, split=SPLITS[held_out.split])
    run.set_tags({DESCRIPTION: describe(run, result, folder / (PAGE if settings.report else NUMBERS))})
    run.set_tags({"openings": len(openings), "chosen_after_opening": any(context.chosen_after.values())})
    return report


def _open(evaluated: EvaluatedModel, held_out: HeldOut) -> list[Opening]:
    """Write the opening to the ledger; returns all openings of these images."""
    run = evaluated.runs[0]
    labels = {"left_out": sum(held_out.left_out.values()), "corrections": held_out.corrections or "none"}
    openings = record_opening(
        run.store,
        split=held_out.split,
        fingerprint=held_out.fingerprint,
        contents=held_out.contents,
        experiment=run.store.experiment_name,
        config_sha256=",".join(run.tags.get("config_sha256", "") for run in evaluated.runs),
        runs=[run.run_id for run in evaluated.runs],
        films=set(held_out.records["sha256"]),
        facts={"classes": ", ".join(evaluated.model.card.class_names), **labels},
    )
    if len(openings) > 1:
        before = times(len(openings) - 1)
        log.warning("some or all of these images were opened before, %s; the experiment `ledger` says by whom", before)
    return openings


def _predict(evaluated: EvaluatedModel, held_out: HeldOut) -> pd.DataFrame:
    logits, distances = evaluated.model.measure(held_out.images, progress="Predicting")
    table = predictions.tabulate(held_out.records, held_out.records.index.to_numpy(), logits)
    predictions.require_usable(table, name=f"split={held_out.split}", classes=evaluated.model.card.classes)
    if held_out.split == "val" and evaluated.validation is not None:
        _require_unaltered(evaluated.runs[0].run_id, evaluated.validation, table)
    if evaluated.model.gate is not None:
        table["gate_score"], table["gate_reason"] = evaluated.model.gate.judge(held_out.images, distances)
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


def _predict_rival(model: TrainedModel, held_out: HeldOut, table: pd.DataFrame) -> Rival:
    logits = model.uncalibrated_logits(held_out.images, progress="Predicting with the other model")
    table = table.assign(logit=logits)
    predictions.require_usable(table, name="compare_to")
    return Rival(model.name, model.decision.calibration.apply(table), model.decision.threshold)


def _context(evaluated: EvaluatedModel, held_out: HeldOut, openings: list[Opening]) -> Context:
    runs = evaluated.runs
    counts = {run.run_id: opened_before(run.store, started=run.started) for run in runs}
    joined = f"the mean of the calibrated logits of {len(runs)} models, judged as one"
    facts = {"Ensemble": joined} if len(runs) > 1 else {}
    if evaluated.validation is None:
        facts["Origin"] = "a folder, no run of this store, whose ledger cannot tell what was opened before its training"
    if official := official_test(evaluated.model.card.evidence):
        facts["Official test"] = official
    return Context(
        model=evaluated.model.name,
        split=held_out.split,
        run_ids=[run.run_id for run in runs],
        config=plain(load_stored(runs[0].config, origin=f"run_id={runs[0].run_id}")),
        tags=runs[0].tags,
        facts=facts,
        openings=[asdict(opening) | {"when": opening.when} for opening in openings],
        chosen_after={run_id: count for run_id, count in counts.items() if count},
        leaks=training_leaks(runs[0], held_out.records) if held_out.split != "val" else None,
        elsewhere=held_out.elsewhere,
        classes=evaluated.model.card.classes,
        left_out=counted(held_out.left_out),
        corrections=held_out.corrections,
    )


def _print(report: Report) -> None:
    assessment, context, out = report.assessment, report.context, console(100)
    for sentence in report.drift.sentences() if report.drift else ():
        out.print(sentence)
    title = (
        f"{SPLITS[context.split].capitalize()}: {assessment.images} images of {assessment.patients} patients; "
        f"operating point {assessment.decision.threshold:.4f} ({assessment.decision.policy})"
    )
    rival = ["other", "p", "p, Holm", "test"] if report.differences else []
    rows = make_table(title, ("metric", "value (95 % interval)", "images / patients", "at 0.5", *rival))
    differences = {one.name: one for one in report.differences}
    for name, metric in METRICS.items():
        here, half = (untold(one[name]) for one in (assessment.at_point, assessment.at_half))
        values = [here or str(assessment.at_point[name]), assessment.at_point[name].count]
        other = _words(differences[name]) if differences else []
        rows.add_row(metric.title, *values, half or number(assessment.at_half[name].value), *other)
    out.print(rows)
    if context.classes != CLASSES:
        out.print(f"Positive: {context.classes[1]}; negative: {context.classes[0]}.")
    if context.left_out:
        out.print(f"Left out, of neither class: {context.left_out}.")
    check = assessment.calibration
    out.print(f"Calibration error: chance alone gives {number(check.floor)}; slope {check.slope}.")
    if differences:
        out.print(f"p is about these two models, not how they were trained. {tested(report.differences)}")
    if context.split == "val":
        out.print("Calibration and operating point were chosen on these images, so they flatter.")
    if context.openings:
        count = len(context.openings)
        when = "just now" if count == 1 else "this one included"
        out.print(f"Ledger: these images, or some of them, were opened {times(count)}, {when}.")
    if context.split == "test" and "Official test" in context.facts:
        out.print(context.facts["Official test"])
    for sentence in filter(None, (context.leakage, report.corrections)):
        out.print(sentence)
    for run_id, count in context.chosen_after.items():
        out.print(f"Run {run_id} was trained after a test had been opened {times(count)} in its store.")


def _words(one: Difference) -> list[str]:
    return [number(one.second) if one.gap.patients >= FEWEST else "-", p(one.p_value), p(one.p_holm), one.test]
