"""Assesses a trained net on validation, and chooses there what goes into its bundle: the end of every training."""

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from xray_pneumonia.data.classes import counted
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.evaluation import predictions, robust_score
from xray_pneumonia.evaluation.abstention import answered_and_wrong
from xray_pneumonia.evaluation.assessment import Decision, OutOfFold, decide
from xray_pneumonia.evaluation.drift import Home, describe
from xray_pneumonia.evaluation.input_gate import Gate, fit_feature_gate, fit_thumbnail_gate
from xray_pneumonia.evaluation.metrics import table_metrics
from xray_pneumonia.evaluation.quality import InputCheck
from xray_pneumonia.evaluation.report.build import PAGE, Context, assess_and_report
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.evaluation.subgroups import Answers, count_answered
from xray_pneumonia.inference.model import distances_by_torch, run_features, run_net
from xray_pneumonia.models.features import FeatureNet
from xray_pneumonia.tracking.ledger import opened_before
from xray_pneumonia.tracking.run import Run, logged
from xray_pneumonia.tracking.store_errors import START, within
from xray_pneumonia.training.classifier import predict_logits
from xray_pneumonia.types import Vector
from xray_pneumonia.workflows.choices import parameters_of
from xray_pneumonia.workflows.evaluation_data import RECORD_COLUMNS, HeldOut, cut
from xray_pneumonia.workflows.stored_predictions import read_siblings

ON_CARD = ("auroc", "sensitivity", "specificity")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """What was chosen on validation, and the predictions with calibrated probabilities."""

    decision: Decision
    gate: Gate
    predictions: pd.DataFrame
    report: Path | None  # None where none was asked for


def assess_validation(
    run: Run,
    config: dict[str, Any],
    net: nn.Module,
    data: XRayDataModule,
    table: pd.DataFrame,
    *,
    settings: EvaluationSettings,
    shifted: pd.DataFrame | None = None,
    out_of_fold: OutOfFold | None = None,
) -> Chosen:
    """Choose calibration, operating point, margin and gate on validation, and write the report into the run.

    `net` has the best weights, `table` its raw predictions on validation, `shifted` those on a shift that was held out
    of the training; `out_of_fold` is what the margin is fitted on instead; where none was named, the other folds, if
    all are trained.
    """
    if settings.out_of_fold is None and config["data"]["folds"]:
        out_of_fold = _siblings(run, config, data)
    decision = decide(table, settings, out_of_fold=out_of_fold)
    held_out = cut(data, "val", config["data"]["root"], set(table["id"]))
    check, distances = fit_gate(net, held_out)
    rows = held_out.records.set_index("id")[[name for name in RECORD_COLUMNS if name in held_out.records]]
    films = table.set_index("id").loc[held_out.records["id"]].reset_index().join(rows, on="id")
    check, films = settle_gate(check, distances, held_out, films, decision)
    report = run.path(f"evaluation/val/{PAGE}") if settings.report else None
    if report:
        parts = held_out.answers(films, decision)
        if shifted is not None:
            parts += _answer_shift(shifted, data, check, decision, name=config["data"]["split"])
        assess_and_report(
            report.parent,
            films,
            held_out.images,
            decision,
            settings,
            context=_context(run, config, held_out),
            net=net,
            predict=partial(run_net, net),
            check=check,
            validation=films,
            parts=parts,
        )
    return Chosen(decision, check.gate, decision.calibration.apply(table), report)


def fit_gate(net: nn.Module, held_out: HeldOut) -> tuple[InputCheck, Vector]:
    """Fit a gate to training images; returns it with open limits, and the distances (N,) of the split's images."""
    if held_out.training is None:
        raise TypeError("a gate is fitted to training images")
    watched = FeatureNet(net, side=held_out.images.shape[1])
    features = run_features(watched, held_out.training)[1]
    if not watched.width or not np.isfinite(features).all():
        gate = fit_thumbnail_gate(held_out.training, held_out.images)
        return InputCheck(gate), np.zeros(len(held_out.images))
    fitted = fit_feature_gate(held_out.training, features)
    check = InputCheck(fitted, lambda images: run_features(watched, images, act=distances_by_torch(fitted))[1][:, 0])
    return check, check.distances(held_out.images)


def settle_gate(
    check: InputCheck, distances: Vector, held_out: HeldOut, films: pd.DataFrame, decision: Decision
) -> tuple[InputCheck, pd.DataFrame]:
    """Fit the limits of a gate with open ones, and its home, to validation: films, distances (N,) and raw predictions.

    Returns:
        The gate, and the predictions with `gate_score` and `gate_reason`.
    """
    images = held_out.images
    gate = check.gate.fitted(images, distances)
    score, reason = gate.judge(images, distances)
    films = films.assign(gate_score=score, gate_reason=reason)
    calibrated = decision.calibration.apply(films)
    home = Home.of(
        describe(calibrated, images, threshold=decision.threshold, prevalence=decision.calibration.prevalence)
    )
    return replace(check, gate=replace(gate, home=home)), films


def _context(run: Run, config: dict[str, Any], held_out: HeldOut) -> Context:
    """Say what is known of a run besides its predictions, and tag it with whether a test was opened before it."""
    opened = _opened_before(run)
    run.set_tags({"chosen_after_opening": "unknown" if opened is None else bool(opened)})
    return Context(
        model=run.name,
        split="val",
        run_ids=[run.run_id],
        config=config,
        tags=run.tags,
        chosen_after={run.run_id: opened} if opened else {},
        classes=held_out.classes,
        left_out=counted(held_out.left_out),
        corrections=held_out.corrections,
    )


def _answer_shift(
    shifted: pd.DataFrame, data: XRayDataModule, check: InputCheck, decision: Decision, *, name: str
) -> list[Answers]:
    """Count the answers on a shift that was held out of the training."""
    images = np.asarray(data.images[shifted.index])
    score, _ = check.gate.judge(images, check.distances(images))
    films = decision.calibration.apply(shifted).assign(gate_score=score)
    return count_answered(films, decision.band, {f"held out of the training: {name}": np.ones(len(films), bool)})


def _siblings(run: Run, config: dict[str, Any], data: XRayDataModule) -> OutOfFold | None:
    """Read what the nets of the other folds said; None where some are not trained or the store does not answer."""
    try:
        params = {key: logged(value) for key, value in parameters_of(config).items()}
        return within(START, partial(read_siblings, run.store, params, data.records), name="the other folds")
    except Exception as error:  # each kind of store has its own
        log.warning("the other folds cannot be read, so the margin is fitted on this one alone: %s", error)
        return None


def _opened_before(run: Run) -> int | None:
    """Ask the ledger how often a test was opened before this training; None where the store does not answer."""
    try:
        ask = partial(opened_before, run.store, started=run.started)
        return within(START, ask, name="the ledger")
    except Exception as error:  # each kind of store has its own
        log.warning("the ledger cannot be read, so it is unknown whether a test was opened before: %s", error)
        return None


def measure_evidence(chosen: Chosen, data: XRayDataModule) -> dict[str, float]:
    """Count for the model card what a model was trained and validated on, with its metrics at the operating point."""
    table = chosen.predictions
    metrics = table_metrics(table, threshold=chosen.decision.threshold)
    trained = data.records[data.records["split"].eq("train") & data.records["error"].eq("")]
    parts = {"train": trained, "val": table}
    sizes = {f"{name}/images": float(len(part)) for name, part in parts.items()}
    patients = {f"{name}/patients": float(part["patient"].nunique()) for name, part in parts.items()}
    return sizes | patients | {f"val/{name}": metrics[name] for name in ON_CARD}


def predict_shift(net: nn.Module, data: XRayDataModule, *, device: torch.device) -> pd.DataFrame | None:
    """Predict, uncalibrated, the images of the shift that `data.split` holds out; None where it holds out none."""
    batches = data.shift_dataloader()
    return None if batches is None else predictions.tabulate(data.records, *predict_logits(net, batches, device=device))


def record_shift(run: Run, shifted: pd.DataFrame | None, decision: Decision) -> pd.DataFrame | None:
    """Log `shift/...` at the operating point of the plain validation, if a shift was held out.

    Returns:
        The calibrated predictions there; None where nothing is held out.
    """
    if shifted is None:
        return None
    table = decision.calibration.apply(shifted)
    predictions.write(table, run.path("predictions/shift.csv"))
    metrics = table_metrics(table, threshold=decision.threshold, prevalence=decision.calibration.prevalence)
    metrics["answered"], metrics["answered_error"] = answered_and_wrong(table, decision.band)
    run.log_metrics({f"shift/{name}": value for name, value in metrics.items() if not np.isnan(value)})
    return table


def assess_parts(
    run: Run,
    net: nn.Module,
    data: XRayDataModule,
    chosen: Chosen,
    *,
    part: str,
    shift: pd.DataFrame | None,
    seed: int,
) -> None:
    """Log `robust/...`: of the shift `part` that was held out, else of validation as it is and corrupted."""
    if shift is not None:
        values = robust_score.measure(part, shift, chosen.decision)
    else:
        table = chosen.predictions
        images = np.asarray(data.images[pd.Index(data.records["id"]).get_indexer(table["id"])])
        predict = partial(run_net, net)
        values = robust_score.measure_validation(table, images, chosen.decision, predict=predict, seed=seed)
    run.log_metrics(values)
