"""Runs `xray adapt`: adapts a trained model to a hospital's own labelled films, and proves what that gains."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from xray_pneumonia.compose import asked
from xray_pneumonia.config import Node, build, check
from xray_pneumonia.data import splits
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.data.local_sample import scan_local
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.adaptation import CrossFit, cross_fit, gain, measure, require_enough_patients
from xray_pneumonia.evaluation.report import text
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.inference.bundle import Card
from xray_pneumonia.inference.loading import load_model
from xray_pneumonia.inference.model import TrainedModel
from xray_pneumonia.tracking.run import start_run
from xray_pneumonia.tracking.store import open_store
from xray_pneumonia.tracking.stored_runs import StoredRun
from xray_pneumonia.training import performance
from xray_pneumonia.types import OpenFraction, Seed, Text
from xray_pneumonia.workflows.adaptation_record import FINETUNE, THRESHOLD, Result, Sample, record, show
from xray_pneumonia.workflows.find_model import find_model, folder_of
from xray_pneumonia.workflows.local_models import (
    Learn,
    Learned,
    has_maps,
    learn_all,
    learn_head,
    read_all,
    reading,
    upright,
)
from xray_pneumonia.workflows.stored_predictions import training_leaks

HEAD_BELOW = 1000  # films: of fewer, a new last layer is learned and no other weight
BEFORE = "before"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """The top-level keys of adapt.yaml."""

    home: Text
    extensions: dict[str, str]
    model: Text
    method: Literal["auto", "threshold", "finetune"]
    recipe: Literal["auto", "head", "all"]
    labels: Text | None
    precision: OpenFraction
    seed: Seed
    data: Node
    augmentation: Node
    loss: Node
    optimizer: Node
    scheduler: Node
    trainer: Node
    evaluation: Node
    tracking: Node


def main(cfg: DictConfig) -> None:
    """Adapt, record and print."""
    check(cfg, AdaptConfig)
    found, model = _find(cfg)
    _ask_as(cfg, model.card)
    values = check(cfg, AdaptConfig)
    settings: EvaluationSettings = build(values["evaluation"])
    performance.prepare_process(keep_freed_memory=True, threads=values["trainer"]["threads"])
    sample = open_sample(values, model.card)
    require_enough_patients(sample.films, precision=values["precision"], classes=model.card.classes)
    if isinstance(found, StoredRun) and (leaks := training_leaks(found, sample.films)):
        log.warning("%d of the films were trained on, so that what is said of the model before flatters it", leaks)
    result = adapt(values, model, sample, settings)
    tracking = build(values["tracking"])
    store = open_store(tracking, home=Path(values["home"]))
    name = tracking.run_name or f"{model.name[:100]} adapted to {Path(values['data']['root']).name}"[:250]
    with start_run(store, name=name, tags={"verb": "adapt"}, system_metrics=False) as run:
        page = record(run, cfg, model, sample, result)
    show(result, sample)
    print(f"Report: {page}\nSee it: {run.see_it}")
    after = result.rows[-1]
    facts = f"method={result.method} auroc={after.metrics['auroc'].value:.6f} answered={after.answered.value:.4f}"
    print(f"run_id={run.run_id} {facts}", flush=True)


def _find(cfg: DictConfig) -> tuple[StoredRun | Path, TrainedModel]:
    found = find_model(str(cfg.model), tracking=build(cfg.tracking), home=Path(cfg.home))
    model = load_model(folder_of(found), name=str(cfg.model))
    if model.members:
        names = ", ".join(member.name for member in model.members)
        raise InputError(f"model={cfg.model}: is an ensemble; adapt one of its members: {names}")
    model.require_net()
    return found, model


def _ask_as(cfg: DictConfig, card: Card) -> None:
    """Have the films read at the model's size, and by its class names unless the command names others."""
    cfg.data.image_size = card.image_size
    for key, name in zip(("negative", "positive"), card.class_names, strict=True):
        if f"data.{key}" not in asked():
            cfg.data[key] = [name]


def open_sample(values: dict[str, Any], card: Card) -> Sample:
    """Read, audit and fold the labelled films."""
    node = values["data"]
    if node["folds"] is None or node["folds"] < 3:
        raise InputError(f"data.folds={node['folds']}: needs 3 or more: one is read, one fits the decisions of others")
    data: XRayDataModule = build(node, build(values["augmentation"], key="augmentation"))
    data.adopt(scan_local(node["root"], question=data.question, patient=node["patient"], labels=values["labels"]))
    data.audit.require_clean(broken=node["broken"])
    for warning in data.audit.warnings:
        log.warning("%s", warning)
    groups = splits.leakage_groups(data.records, data.audit.twins)
    shares = [1 / node["folds"]] * node["folds"]
    fold = splits.cut(groups, data.records["label"], shares, seed=values["seed"])
    films = data.records.assign(fold=fold, row=np.arange(len(fold)), split="train")
    films = films[films["error"].eq("")].reset_index(drop=True)
    return Sample(node["root"], data, films, np.asarray(data.images[films["row"].to_numpy()]))


def adapt(values: dict[str, Any], model: TrainedModel, sample: Sample, settings: EvaluationSettings) -> Result:
    """Cross-fit the methods, choose one, and fit it to all films."""
    images, films = sample.images, sample.films.assign(upright=upright(sample.images, model.gate))
    start = read_all(model.require_net(), model.card.net, images)
    recipe = _recipe(values["recipe"], start, len(films))
    ways: dict[str, Learn] = {THRESHOLD: lambda _: start}
    if recipe == "head":
        ways[FINETUNE] = partial(learn_head, start, films["label"].to_numpy(), images.shape[1])
    else:
        ways[FINETUNE] = partial(learn_all, start, sample.data, values, images, films["row"].to_numpy())
    wanted = [THRESHOLD, FINETUNE] if values["method"] == "auto" else [values["method"]]
    fitted = {
        name: cross_fit(reading(ways[name], films, images), films, settings, nets=name == FINETUNE) for name in wanted
    }
    before = _before(model, films, images, start)
    rows = [measure(BEFORE, before, settings, threshold=model.card.operating_point, before=None)]
    for name in wanted:
        rows.append(measure(name, _ranked(name, fitted[name]), settings, threshold=0.5, before=before))
    method, why = _choose(values["method"], fitted, before)
    rows.sort(key=lambda row: row.name == method)  # the chosen one comes last
    return Result(method, recipe, fitted[method], ways[method](np.arange(len(films))), rows, why)


def _recipe(asked_for: str, start: Learned, films: int) -> str:
    if asked_for == "head" and not has_maps(start):
        raise InputError("recipe=head: this net has no maps, whose means a new last layer reads; use recipe=all")
    small = films < HEAD_BELOW and has_maps(start)
    return asked_for if asked_for != "auto" else "head" if small else "all"


def _ranked(name: str, fitted: CrossFit) -> pd.DataFrame:
    """Make scores comparable across folds: logits of one net, or, of a net a fold, distances to its operating point."""
    answers = fitted.answers
    return answers.assign(logit=answers["margin"]) if name == FINETUNE else answers


def _before(model: TrainedModel, films: pd.DataFrame, images: Any, start: Learned) -> pd.DataFrame:
    """Answer the films with the model as it is."""
    given = model.decide(images)
    answered = given["answer"].ne("look closer").to_numpy()
    return films.assign(
        logit=start.logits, probability=given["probability"], answered=answered, threshold=model.card.operating_point
    )


def _choose(method: str, fitted: dict[str, CrossFit], before: pd.DataFrame) -> tuple[str, str]:
    """Choose by what ranks other patients' films better; returns the method and the reason."""
    if method != "auto":
        return method, f"method={method}, as it was asked for."
    gap, p_value = gain(_ranked(FINETUNE, fitted[FINETUNE]), before)
    better = gap.low > 0
    found = f"its gain in AUROC is {gap}, p {text.p(p_value)}, n = {gap.patients} patients"
    if better:
        return FINETUNE, f"Finetune was chosen: {found}. It was chosen on these figures, which so flatter it a little."
    return THRESHOLD, f"Threshold was chosen: finetune ranks the films of other patients no better ({found})."
