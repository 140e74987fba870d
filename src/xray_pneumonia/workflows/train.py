"""`xray train`: one run, from a composed config to metrics, figures, checkpoints and a bundle in MLflow."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.table import Table
from torch import nn

from xray_pneumonia.config import Node, anchor, build, check, plain
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.data.files import require_unchanged
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.evaluation.metrics import Monitor, epoch_metrics, monitor_mode
from xray_pneumonia.models.layers import takes, to_channels_last
from xray_pneumonia.sweeps.trial_spec import take_trial
from xray_pneumonia.tracking.lightning_logger import RunLogger
from xray_pneumonia.tracking.run import Run, start_run
from xray_pneumonia.tracking.store import masked, open_or_journal
from xray_pneumonia.training import checkpoints, hashes, performance
from xray_pneumonia.training.callbacks import build_callbacks
from xray_pneumonia.training.classifier import PneumoniaClassifier
from xray_pneumonia.training.predict import predict_logits
from xray_pneumonia.training.trainer import TrainerSettings, build_trainer, fit
from xray_pneumonia.training.watching import Recheck
from xray_pneumonia.types import Seed
from xray_pneumonia.workflows import resume
from xray_pneumonia.workflows.training_run import THRESHOLD, Trained, record_origin
from xray_pneumonia.workflows.watching import Watch


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The top-level keys of train.yaml."""

    home: str
    seed: Seed
    monitor: Monitor
    mode: Literal["max", "min"] | None
    data: Node
    augmentation: Node
    model: Node
    loss: Node
    optimizer: Node
    scheduler: Node
    trainer: Node
    evaluation: Node
    tracking: Node


def main(cfg: DictConfig) -> float:
    """Train and print; returns the kept epoch's validation AUROC."""
    anchor(cfg)
    wanted = resume.take_resume(cfg)
    trial = take_trial(cfg)
    if trial:
        return trial.run(lambda each, watch: train(_checked(each), watch=watch))
    trained = _train_or_resume(cfg, wanted)
    _print(trained, Console(width=None if Console().is_terminal else 80), cfg.trainer)
    print(f"run_id={trained.run_id} val/auroc={trained.metrics['auroc']:.6f}", flush=True)
    return trained.metrics["auroc"]


def _train_or_resume(cfg: DictConfig, wanted: str | None) -> Trained:
    _checked(cfg)
    if wanted is None:
        resume.offer(cfg)
    if wanted in {None, resume.ANEW}:
        return train(cfg)
    resumption = resume.open_resumption(cfg, str(wanted))
    return train(_checked(resumption.cfg), resumption=resumption)


def _checked(cfg: DictConfig) -> DictConfig:
    check(cfg, TrainConfig)
    cfg.mode = monitor_mode(cfg.monitor, cfg.mode)
    return cfg


def train(cfg: DictConfig, *, watch: Watch | None = None, resumption: resume.Resumption | None = None) -> Trained:
    """Train one classifier on a checked config and record the run.

    Args:
        cfg: the whole config.
        watch: the sweep's, whose trial this is, or a proof's.
        resumption: the stopped run that goes on, instead of a new one.
    """
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    settings: TrainerSettings = build(cfg.trainer)
    build(cfg.evaluation)  # what it refuses is refused before any training
    data: XRayDataModule = build(cfg.data, build(cfg.augmentation))
    net: nn.Module = build(cfg.model)
    net = to_channels_last(net) if settings.channels_last else net
    _grow(net, data, settings)
    performance.prepare_process(keep_freed_memory=settings.keep_freed_memory, threads=settings.threads)
    data.prepare()
    classifier = _classifier(cfg, net, data)
    tracking = build(cfg.tracking)
    store = resumption.store if resumption else open_or_journal(tracking, home=Path(cfg.home))
    known = resumption or watch
    identity = resume.identity_of(cfg, data, settings)
    start = resume.begin(store, known.run_id if known else None, identity, data)
    if resumption:
        resume.claim(store, resumption.run_id)
    name, tags = (watch.name, watch.tags) if watch else (tracking.run_name, {})
    tags = {"verb": "train", **tags}
    with start_run(store, name=name, tags=tags, system_metrics=tracking.system_metrics, run_id=start.run_id) as run:
        if start.checkpoint is None:
            record_origin(run, cfg, data, net)
        trainer = _fit(cfg, classifier, data, run, start, watch.callbacks if watch else [])
        trained = _conclude(cfg, classifier, data, run, trainer)
        if watch:
            watch.close(run, best_epoch=trained.best_epoch)
    return trained


def _grow(net: nn.Module, data: XRayDataModule, settings: TrainerSettings) -> None:
    """Let the images grow over the epochs, where the net takes all their sizes."""
    data.spread_over(settings.max_epochs)
    refused = [side for side in data.sides if not takes(net, side)]
    if refused:
        raise InputError(
            f"data.progressive={data.sides}: this net takes no images of {refused[0]} pixels; choose one that pools "
            "over the whole image (model=resnet, model=torchvision), or data.progressive=null"
        )


def _fit(
    cfg: DictConfig,
    classifier: PneumoniaClassifier,
    data: XRayDataModule,
    run: Run,
    start: resume.Start,
    watching: list[Callback],
) -> pl.Trainer:
    settings: TrainerSettings = build(cfg.trainer)
    folder = run.folder / "checkpoints"
    callbacks = build_callbacks(settings, monitor=cfg.monitor, mode=cfg.mode, folder=folder, identity=start.identity)
    callbacks += [Recheck(partial(require_unchanged, data.records)), *watching]
    trainer = build_trainer(settings, callbacks=callbacks, logger=RunLogger(run), folder=run.folder)
    fit(trainer, classifier, data, start=start.checkpoint)
    return trainer


def _conclude(
    cfg: DictConfig, classifier: PneumoniaClassifier, data: XRayDataModule, run: Run, trainer: pl.Trainer
) -> Trained:
    """Judge the kept epoch on validation and record what came out."""
    # Pages, figures and heat maps: they take seconds to import, which no first step waits for.
    from xray_pneumonia.workflows.result import record_bundle, record_result
    from xray_pneumonia.workflows.validation import judge_shift, judge_validation

    folder = run.folder / "checkpoints"
    best_epoch = _load_best(classifier, folder / checkpoints.BEST)
    table = _predict(classifier.net, data, trainer.strategy.root_device)
    chosen = judge_validation(run, cfg, classifier.net, data, table, settings=build(cfg.evaluation))
    judge_shift(run, classifier.net, data, chosen.decision, device=trainer.strategy.root_device)
    metrics = _metrics(chosen.predictions)
    trained = Trained(run.run_id, run.store.uri, best_epoch, trainer.current_epoch, chosen.predictions, metrics)
    record_result(run, trained, data)
    record_bundle(run, cfg, classifier.net, data, chosen, epoch=best_epoch)
    checkpoints.drop_previous(folder)
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


def _load_best(classifier: PneumoniaClassifier, path: Path) -> int:
    """Load the kept epoch's weights; returns its number, counted from 1."""
    hashes.verify(path)
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    classifier.load_state_dict(checkpoint["state_dict"])
    return int(checkpoint["epoch"]) + 1


def _predict(net: nn.Module, data: XRayDataModule, device: torch.device) -> pd.DataFrame:
    index, logits = predict_logits(net, data.val_dataloader(), device=device)
    return predictions.tabulate(data.records, index, logits)


def _metrics(table: pd.DataFrame) -> dict[str, float]:
    return epoch_metrics(table["logit"].to_numpy(), table["label"].to_numpy(), threshold=THRESHOLD)


def _print(trained: Trained, console: Console, trainer: DictConfig) -> None:
    """Print the result with what it rests on."""
    table = trained.predictions
    title = f"Validation: {len(table)} images of {table['patient'].nunique()} patients, none of them trained on"
    rows = Table(title=title, title_justify="left", title_style="bold")
    for name in trained.metrics:
        rows.add_column(name.replace("_", " "), justify="right")
    rows.add_row(*(f"{value:.4f}" for value in trained.metrics.values()))
    console.print(rows)
    kept = f"Best of {trained.epochs} epochs: {trained.best_epoch}, chosen on these same images, so slightly flattered."
    stopped = "none" if trainer.patience is None else "where it stops"
    last = f"The last of {trained.epochs} epochs: {stopped} was chosen on these images."
    console.print(f"{kept if trainer.keep == 'best' else last} Threshold {THRESHOLD:g}.")
    console.print(f"See it: mlflow ui --backend-store-uri {masked(trained.uri)}", soft_wrap=True, highlight=False)
