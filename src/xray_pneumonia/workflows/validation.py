"""The end of every training: the model is judged on validation, and what is chosen there goes into its bundle."""

import logging
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from torch import nn

from xray_pneumonia.config import plain
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.evaluation.assessment import judge
from xray_pneumonia.evaluation.decision import Decision, decide
from xray_pneumonia.evaluation.input_gate import Gate
from xray_pneumonia.evaluation.metrics import table_metrics
from xray_pneumonia.evaluation.report.model_card import checklist_answers, model_facts
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.inference.model import run_net
from xray_pneumonia.tracking.ledger import opened_before
from xray_pneumonia.tracking.run import Run
from xray_pneumonia.tracking.store_errors import START, within
from xray_pneumonia.training.predict import predict_logits
from xray_pneumonia.workflows.closer_look import learn_gate, look_closer
from xray_pneumonia.workflows.dossier import Dossier, write_dossier
from xray_pneumonia.workflows.evaluation_data import RECORD_COLUMNS, HeldOut, cut

EVIDENCE = ("auroc", "sensitivity", "specificity")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """What was chosen on validation, and the predictions with calibrated probabilities."""

    decision: Decision
    gate: Gate | None
    predictions: pd.DataFrame


def judge_validation(
    run: Run,
    cfg: DictConfig,
    net: nn.Module,
    data: XRayDataModule,
    table: pd.DataFrame,
    *,
    settings: EvaluationSettings,
) -> Chosen:
    """Choose calibration, operating point, band and gate on validation; judge, and write the dossier into the run.

    Args:
        run: of the training.
        cfg: its config.
        net: with the best weights.
        data: prepared.
        table: raw predictions on validation, in the order of the records.
        settings: of the evaluation.
    """
    decision = decide(table, settings)
    calibrated = decision.calibration.apply(table)
    held_out = cut(data, "val", str(cfg.data.root), set(table["id"]))
    gate = learn_gate(held_out)
    if settings.report:
        _report(run, cfg, net, held_out, table, decision, settings, gate)
    return Chosen(decision, gate, calibrated)


def measure_evidence(chosen: Chosen, data: XRayDataModule) -> dict[str, float]:
    """Count what a model learned from and was judged by, for its card; on validation, at the operating point."""
    table = chosen.predictions
    films = data.records[data.records["split"].eq("train") & data.records["error"].eq("")]
    at_point = table_metrics(table, threshold=chosen.decision.threshold)
    counted = {"train": films, "val": table}
    sizes = {f"{name}/images": float(len(part)) for name, part in counted.items()}
    people = {f"{name}/patients": float(part["patient"].nunique()) for name, part in counted.items()}
    return sizes | people | {f"val/{name}": at_point[name] for name in EVIDENCE}


def judge_shift(run: Run, net: nn.Module, data: XRayDataModule, decision: Decision, *, device: torch.device) -> None:
    """Log `shift/...` at the operating point of the plain validation, where `data.split` holds out a shift."""
    batches = data.shift_dataloader()
    if batches is None:
        return
    index, logits = predict_logits(net, batches, device=device)
    table = decision.calibration.apply(predictions.tabulate(data.records, index, logits))
    predictions.write(table, run.path("predictions/shift.csv"))
    found = table_metrics(table, threshold=decision.threshold)
    run.log_metrics({f"shift/{name}": value for name, value in found.items() if not np.isnan(value)})


def _report(
    run: Run,
    cfg: DictConfig,
    net: nn.Module,
    held_out: HeldOut,
    table: pd.DataFrame,
    decision: Decision,
    settings: EvaluationSettings,
    gate: Gate | None,
) -> None:
    rows = held_out.records.set_index("id")[[name for name in RECORD_COLUMNS if name in held_out.records]]
    table = table.set_index("id").loc[held_out.records["id"]].reset_index().join(rows, on="id")
    judgement = judge(table, decision, settings, validation=table)
    experiment = run.store.experiment_name
    opened = _opened_before(run, experiment)
    config = plain(cfg)
    dossier = Dossier(
        model=run.name,
        split="val",
        run_ids=[run.run_id],
        facts=model_facts(config, run.tags, judgement, settings),
        answers=checklist_answers(config, held_out.records, judgement, split="val", openings=0),
        chosen_after={run.run_id: opened} if opened else {},
    )
    look_closer(dossier, judgement, held_out, settings, net=net, predict=partial(run_net, net), gate=gate)
    write_dossier(run, dossier, judgement, held_out.images, settings)
    run.log_metrics({f"operating/{name}": value for name, value in judgement.metrics().items()})
    run.set_tags({"chosen_after_opening": "unknown" if opened is None else bool(opened)})


def _opened_before(run: Run, experiment: str) -> int | None:
    """Ask the ledger; None where the store that holds it is away."""
    try:
        ask = partial(opened_before, run.store, experiment=experiment, started=run.started)
        return within(START, ask, shown="the ledger")
    except Exception as error:  # each kind of store has its own
        log.warning("the ledger cannot be read, so it is unknown whether a test was opened before: %s", error)
        return None
