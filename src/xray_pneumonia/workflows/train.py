"""`xray train`: one run, from a composed config to metrics, figures, checkpoints and a bundle in MLflow."""

import logging
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import nn

from xray_pneumonia.config import Node, anchor, build, check, leaves, plain
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.data.records import CLASSES, fingerprint
from xray_pneumonia.evaluation import figures, predictions
from xray_pneumonia.evaluation.metrics import classification_metrics
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.models.bundle import Card, save_bundle
from xray_pneumonia.ranges import Monitor, Seed
from xray_pneumonia.reading.bundles import CONFIG, GATE
from xray_pneumonia.sweeps.reporting import Watch
from xray_pneumonia.sweeps.trial import take_trial
from xray_pneumonia.tracking.logger import RunLogger
from xray_pneumonia.tracking.provenance import collect
from xray_pneumonia.tracking.run import Run, start_run
from xray_pneumonia.tracking.store import masked, open_store
from xray_pneumonia.training import speed
from xray_pneumonia.training.callbacks import build_callbacks
from xray_pneumonia.training.classifier import PneumoniaClassifier
from xray_pneumonia.training.inference import predict_logits
from xray_pneumonia.training.trainer import TrainerSettings, build_trainer
from xray_pneumonia.workflows.validation import Chosen, evidence, judge_shift, judge_validation

log = logging.getLogger(__name__)

THRESHOLD = 0.5  # of the figures that compare runs; the operating point stands in the report and the bundle
CURVES = [f"{stage}/{name}" for stage in ("train", "val") for name in ("loss", "accuracy", "auroc")]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The top-level keys of train.yaml."""

    home: str
    seed: Seed
    monitor: Monitor
    mode: Literal["max", "min"]
    data: Node
    augmentation: Node
    model: Node
    loss: Node
    optimizer: Node
    scheduler: Node
    trainer: Node
    evaluation: Node
    tracking: Node


@dataclass(frozen=True)
class Trained:
    """What a training leaves behind: the run, and the best epoch with its predictions on validation."""

    run_id: str
    uri: str
    best_epoch: int
    epochs: int
    predictions: pd.DataFrame
    metrics: dict[str, float]


def main(cfg: DictConfig) -> float:
    """Train and print; returns the best epoch's validation AUROC."""
    anchor(cfg)
    trial = take_trial(cfg)
    if trial:
        return trial.run(lambda each, watch: train(_checked(each), watch=watch))
    trained = train(_checked(cfg))
    _print(trained, Console(width=None if Console().is_terminal else 80))
    print(f"run_id={trained.run_id} val/auroc={trained.metrics['auroc']:.6f}", flush=True)
    return trained.metrics["auroc"]


def _checked(cfg: DictConfig) -> DictConfig:
    check(cfg, TrainConfig)
    return cfg


def train(cfg: DictConfig, *, watch: Watch | None = None) -> Trained:
    """Train one classifier on a checked config and record the run; a sweep watches its trials."""
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    settings: TrainerSettings = build(cfg.trainer)
    judging: EvaluationSettings = build(cfg.evaluation)
    data: XRayDataModule = build(cfg.data, build(cfg.augmentation))
    net: nn.Module = speed.lay_out(build(cfg.model), channels_last=settings.channels_last)
    speed.prepare_process(keep_freed_memory=settings.keep_freed_memory, threads=settings.threads)
    data.prepare()
    classifier = _classifier(cfg, net, data)
    tracking = build(cfg.tracking)
    store = open_store(tracking, home=Path(cfg.home))
    name, tags, known = (watch.name, watch.tags, watch.run_id) if watch else (tracking.run_name, {}, None)
    tags = {"verb": "train", **tags}
    with start_run(store, name=name, tags=tags, system_metrics=tracking.system_metrics, run_id=known) as run:
        _record_origin(run, cfg, data, net)
        checkpoints = run.folder / "checkpoints"
        callbacks = build_callbacks(settings, monitor=cfg.monitor, mode=cfg.mode, folder=checkpoints)
        callbacks += watch.callbacks if watch else []
        trainer = build_trainer(settings, callbacks=callbacks, logger=RunLogger(run), folder=run.folder)
        last = checkpoints / "last.ckpt"  # there already where a requeued trial goes on with its run
        trainer.fit(classifier, datamodule=data, ckpt_path=last if last.exists() else None)
        best_epoch = _load_best(classifier, checkpoints / "best.ckpt")
        table = _predict(classifier.net, data, trainer.strategy.root_device)
        chosen = judge_validation(run, cfg, classifier.net, data, table, settings=judging)
        judge_shift(run, classifier.net, data, chosen.decision, device=trainer.strategy.root_device)
        trained = Trained(
            run.run_id, store.uri, best_epoch, trainer.current_epoch, chosen.predictions, _metrics(chosen.predictions)
        )
        _record_result(run, trained, data)
        _record_bundle(run, cfg, classifier.net, data, chosen, epoch=best_epoch)
        if watch:
            watch.close(run, best_epoch=best_epoch)
    return trained


def _classifier(cfg: DictConfig, net: nn.Module, data: XRayDataModule) -> PneumoniaClassifier:
    loss = build(cfg.loss, data.class_counts())
    return PneumoniaClassifier(
        net,
        loss=loss,
        optimizer=_Maker(cfg.optimizer),
        scheduler=_Maker(cfg.scheduler),
        monitor=cfg.monitor,
        mode=cfg.mode,
    )


class _Maker:
    """Builds a node later, when its positional arguments are there; goes to other processes as plain values."""

    def __init__(self, node: DictConfig) -> None:
        self._node = plain(node)

    def __call__(self, *handed_in: Any) -> Any:
        return build(self._node, *handed_in)


def _record_origin(run: Run, cfg: DictConfig, data: XRayDataModule, net: nn.Module) -> None:
    """Record all that is known before the first step: config, data, code, machine."""
    public = cfg.copy()
    public.tracking.uri = masked(cfg.tracking.uri) if cfg.tracking.uri else None
    run.log_config(OmegaConf.to_yaml(public, resolve=True))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    run.log_params({**dict(leaves(plain(public))), "model/parameters": parameters})
    run.log_metrics({"model/parameters": parameters})
    run.log_provenance(collect())
    print_of_data = fingerprint(data.records)
    run.set_tags({"records_fingerprint": print_of_data})
    run.log_dataset(name=Path(cfg.data.root).name, digest=print_of_data, source=cfg.data.root, stage="train")
    sizes = data.records.groupby("split").agg(images=("id", "size"), patients=("patient", "nunique"))
    run.log_metrics(
        {f"data/{split}_{what}": n for what, column in sizes.items() for split, n in column.items() if split}
    )
    log.info("run %s: %d parameters, %s", run.run_id, parameters, _sizes(sizes))


def _sizes(sizes: pd.DataFrame) -> str:
    known = [split for split in ("train", "val") if split in sizes.index]
    return ", ".join(
        f"{split} {sizes['images'][split]} images of {sizes['patients'][split]} patients" for split in known
    )


def _load_best(classifier: PneumoniaClassifier, path: Path) -> int:
    """Load the best epoch's weights; returns its number, counted from 1."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    classifier.load_state_dict(checkpoint["state_dict"])
    return int(checkpoint["epoch"]) + 1


def _predict(net: nn.Module, data: XRayDataModule, device: torch.device) -> pd.DataFrame:
    index, logits = predict_logits(net, data.val_dataloader(), device=device)
    return predictions.tabulate(data.records, index, logits)


def _metrics(table: pd.DataFrame) -> dict[str, float]:
    return classification_metrics(table["logit"].to_numpy(), table["label"].to_numpy(), threshold=THRESHOLD)


def _record_result(run: Run, trained: Trained, data: XRayDataModule) -> None:
    """Record predictions, metrics and figures of the best epoch."""
    table = trained.predictions
    predictions.write(table, run.path("predictions/val.csv"))
    run.log_metrics({"best/epoch": trained.best_epoch, **{f"best/{k}": v for k, v in trained.metrics.items()}})
    pictures = {
        "learning_curves": figures.learning_curves(run.metric_history(CURVES), best_epoch=trained.best_epoch),
        "confusion_matrix": figures.confusion_matrix(table, threshold=THRESHOLD),
        "roc_and_precision_recall": figures.roc_and_precision_recall(table, threshold=THRESHOLD),
        "worst_mistakes": figures.worst_mistakes(table, data.images, threshold=THRESHOLD),
    }
    for name, picture in pictures.items():
        figures.save(picture, run.path(f"figures/{name}.png"))


def _record_bundle(
    run: Run, cfg: DictConfig, net: nn.Module, data: XRayDataModule, chosen: Chosen, *, epoch: int
) -> None:
    """Record the best weights, with all that a prediction needs, as an MLflow model."""
    decision = chosen.decision
    card = Card(
        net=plain(cfg.model),
        class_names=list(CLASSES),
        image_size=data.image_size,
        temperature=decision.calibration.temperature,
        bias=decision.calibration.bias,
        operating_point=decision.threshold,
        operating_point_policy=decision.policy,
        band=[decision.band.low, decision.band.high],
        records_fingerprint=fingerprint(data.records),
        run_id=run.run_id,
        versions={name: version(name) for name in ("xray-pneumonia", "torch")},
        evidence=evidence(chosen, data),
    )
    with TemporaryDirectory() as folder:
        save_bundle(Path(folder), net.cpu(), card)
        shutil.copyfile(run.path(CONFIG), Path(folder) / CONFIG)
        if chosen.gate is not None:
            chosen.gate.write(Path(folder) / GATE)
        run.log_model(Path(folder), image_size=data.image_size, epoch=epoch)


def _print(trained: Trained, console: Console) -> None:
    """Print the result with what it rests on."""
    table = trained.predictions
    title = f"Validation: {len(table)} images of {table['patient'].nunique()} patients, none of them trained on"
    rows = Table(title=title, title_justify="left", title_style="bold")
    for name in trained.metrics:
        rows.add_column(name.replace("_", " "), justify="right")
    rows.add_row(*(f"{value:.4f}" for value in trained.metrics.values()))
    console.print(rows)
    console.print(
        f"Best of {trained.epochs} epochs: {trained.best_epoch}, chosen on these same images, so slightly flattered. "
        f"Threshold {THRESHOLD:g}."
    )
    console.print(f"See it: mlflow ui --backend-store-uri {masked(trained.uri)}", soft_wrap=True, highlight=False)
