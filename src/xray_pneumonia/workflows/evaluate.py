"""`xray evaluate`: judge a trained model on a split, with intervals, in one report."""

import logging
from dataclasses import dataclass
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
from xray_pneumonia.evaluation.assessment import Judgement, judge
from xray_pneumonia.evaluation.comparison import Difference, compare
from xray_pneumonia.evaluation.report.model_card import checklist_answers, model_facts
from xray_pneumonia.evaluation.report.text import SPLITS, TITLES, number, times
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.inference.model import TrainedModel
from xray_pneumonia.stored_config import load_stored
from xray_pneumonia.tracking.ledger import Opening, opened_before, record_opening
from xray_pneumonia.tracking.provenance import collect
from xray_pneumonia.tracking.run import Run, start_run
from xray_pneumonia.tracking.store import masked, open_store
from xray_pneumonia.training import performance
from xray_pneumonia.workflows.closer_look import learn_gate, look_closer
from xray_pneumonia.workflows.dossier import Dossier, write_dossier
from xray_pneumonia.workflows.evaluation_data import (
    RECORD_COLUMNS,
    HeldOut,
    Split,
    open_split,
    require_comparable,
    training_leaks,
)
from xray_pneumonia.workflows.find_model import EvaluatedModel, find_compared, find_evaluated

DRIFT = 0.05  # logits of one model on one image differ less between machines
log = logging.getLogger(__name__)


class Films(TypedDict):
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
    data: Films
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
    evaluated = find_evaluated(store, cfg, settings)
    other = find_compared(store, cfg, settings)
    held_out = open_split(
        evaluated.runs[0],
        cfg.split,
        root=cfg.data.root,
        broken=cfg.data.broken,
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
    with start_run(store, name=name, tags=tags, system_metrics=False) as run:
        _record_origin(run, cfg, values, held_out)
        judgement, dossier, (what, where) = evaluate(run, evaluated, held_out, settings, other=other)
    _print(judgement, dossier, Console(width=None if Console().is_terminal else 100))
    print(f"{what}: {where}")
    print(f"See it: mlflow ui --backend-store-uri {masked(store.uri)}")
    print(f"run_id={run.run_id} {cfg.split}/auroc={judgement.at_point['auroc'].value:.6f}", flush=True)


def evaluate(
    run: Run,
    evaluated: EvaluatedModel,
    held_out: HeldOut,
    settings: EvaluationSettings,
    *,
    other: EvaluatedModel | None,
) -> tuple[Judgement, Dossier, tuple[str, Path]]:
    """Open the split, predict, judge and write the dossier into a run; the ledger comes first."""
    openings = _open(evaluated, held_out)
    table = _predict(evaluated, held_out)
    chosen_on = table if held_out.split == "val" and evaluated.validation is None else evaluated.validation
    judgement = judge(table, evaluated.model.decision, settings, validation=chosen_on)
    dossier = _dossier(evaluated, held_out, judgement, settings, openings=openings)
    if other is not None:
        dossier.rival, dossier.differences = other.model.name, _compare(judgement, other.model, held_out, settings)
    model = evaluated.model
    gate = (model.gate or learn_gate(held_out)) if settings.report else None
    net, logits = model.require_net(), model.uncalibrated_logits
    look_closer(dossier, judgement, held_out, settings, net=net, predict=logits, gate=gate)
    written = write_dossier(run, dossier, judgement, held_out.images, settings)
    run.log_metrics({f"{held_out.split}/{name}": value for name, value in judgement.metrics().items()})
    run.set_tags({"openings": len(openings), "chosen_after_opening": any(dossier.chosen_after.values())})
    return judgement, dossier, written


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


def _open(evaluated: EvaluatedModel, held_out: HeldOut) -> list[Opening]:
    """Write the opening to the ledger, before anything is predicted."""
    run = evaluated.runs[0]
    found = record_opening(
        run.store,
        split=held_out.split,
        fingerprint=held_out.fingerprint,
        contents=held_out.contents,
        experiment=run.store.experiment_name,
        config_sha256=",".join(run.tags.get("config_sha256", "") for run in evaluated.runs),
        runs=[run.run_id for run in evaluated.runs],
    )
    if len(found) > 1:
        log.warning(
            "these images have been opened %s before; the experiment `ledger` says by whom", times(len(found) - 1)
        )
    return found


def _predict(evaluated: EvaluatedModel, held_out: HeldOut) -> pd.DataFrame:
    logits = evaluated.model.uncalibrated_logits(held_out.images, progress="Predicting")
    table = predictions.tabulate(held_out.records, held_out.records.index.to_numpy(), logits)
    predictions.require_usable(table, name=f"split={held_out.split}")
    if held_out.split == "val" and evaluated.validation is not None:
        _require_unaltered(evaluated.runs[0].run_id, evaluated.validation, table)
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


def _dossier(
    evaluated: EvaluatedModel,
    held_out: HeldOut,
    judgement: Judgement,
    settings: EvaluationSettings,
    *,
    openings: list[Opening],
) -> Dossier:
    config = plain(load_stored(evaluated.runs[0].config, origin=f"run_id={evaluated.runs[0].run_id}"))
    runs = evaluated.runs
    counts = {
        run.run_id: opened_before(run.store, experiment=run.store.experiment_name, started=run.started) for run in runs
    }
    return Dossier(
        model=evaluated.model.name,
        split=held_out.split,
        run_ids=[run.run_id for run in runs],
        facts=model_facts(config, runs[0].tags, judgement, settings)
        | _of_ensemble(evaluated)
        | _of_its_past(evaluated),
        answers=checklist_answers(config, held_out.records, judgement, split=held_out.split, openings=len(openings)),
        openings=openings,
        chosen_after={run_id: count for run_id, count in counts.items() if count},
        leaks=training_leaks(runs[0], held_out.records) if held_out.split != "val" else None,
        elsewhere=held_out.elsewhere,
    )


def _of_ensemble(evaluated: EvaluatedModel) -> dict[str, str]:
    if len(evaluated.runs) == 1:
        return {}
    return {"Ensemble": f"the mean of the calibrated logits of {len(evaluated.runs)} models, judged as one"}


def _of_its_past(evaluated: EvaluatedModel) -> dict[str, str]:
    if evaluated.validation is not None:
        return {}
    return {"Origin": "a folder, not a run of this store, whose ledger cannot tell what was opened before its training"}


def _compare(
    judgement: Judgement, model: TrainedModel, held_out: HeldOut, settings: EvaluationSettings
) -> list[Difference]:
    logits = model.uncalibrated_logits(held_out.images, progress="Predicting with the other model")
    table = judgement.table.assign(logit=logits)
    predictions.require_usable(table, name="compare_to")
    return compare(
        judgement.table,
        model.decision.calibration.apply(table),
        thresholds=(judgement.decision.threshold, model.decision.threshold),
        replicates=settings.replicates,
        seed=settings.seed,
    )


def _print(judgement: Judgement, dossier: Dossier, console: Console) -> None:
    title = (
        f"{SPLITS[dossier.split].capitalize()}: {judgement.images} images of {judgement.patients} patients; operating "
        f"point {judgement.decision.threshold:.4f} ({judgement.decision.policy})"
    )
    rows = Table(title=title, title_justify="left", title_style="bold")
    for column in ("metric", "value (95 % interval)", "at 0.5", *(["other", "p"] if dossier.differences else [])):
        rows.add_column(column)
    differences = {one.name: one for one in dossier.differences}
    for name, words in TITLES.items():
        other = [differences[name].second, differences[name].p_value] if differences else []
        plain = [number(value) for value in (judgement.at_half[name].value, *other)]
        rows.add_row(words, str(judgement.at_point[name]), *plain)
    console.print(rows)
    if dossier.split == "val":
        console.print("Calibration and operating point were chosen on these images, so they flatter.")
    if dossier.openings:
        count = len(dossier.openings)
        when = "just now" if count == 1 else "this one included"
        console.print(f"Ledger: these images were opened {times(count)}, {when}.")
    if dossier.leakage:
        console.print(dossier.leakage)
    for run_id, count in dossier.chosen_after.items():
        console.print(f"Run {run_id} was trained after a test had been opened {times(count)} for its experiment.")
