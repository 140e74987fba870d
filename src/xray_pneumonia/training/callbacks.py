"""What happens around the epochs: clocks, one line each, the bar, the checkpoints."""

import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xray_pneumonia.training import performance
from xray_pneumonia.training.averaging import Averaging
from xray_pneumonia.training.compiling import Compiling
from xray_pneumonia.training.last_checkpoint import Keeper
from xray_pneumonia.training.progress import EpochClock
from xray_pneumonia.training.trainer import TrainerSettings

log = logging.getLogger(__name__)


class EpochLine(Callback):
    """Log one line for each epoch, which stays when the bar is gone.

    The training metrics of an epoch are there only after every callback has seen its end, so the line
    comes when the next epoch, or the end, does.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the epoch before."""
        if trainer.current_epoch > 0:
            self._report(trainer, epochs=trainer.current_epoch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the last epoch."""
        self._report(trainer, epochs=trainer.current_epoch)

    def _report(self, trainer: pl.Trainer, *, epochs: int) -> None:
        if not trainer.is_global_zero:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        log.info(
            "epoch %d/%s  train loss %.4f acc %.3f  val loss %.4f acc %.3f auroc %.4f  %.1f s, %.0f img/s",
            epochs,
            trainer.max_epochs,
            *(values.get(f"train/{name}", math.nan) for name in ("loss", "accuracy")),
            *(values.get(f"val/{name}", math.nan) for name in ("loss", "accuracy", "auroc")),
            *(values.get(f"time/{name}", math.nan) for name in ("epoch_seconds", "images_per_second")),
        )


class Bar(Callback):
    """A bar for each epoch, on standard error: the loss, the validation AUROC so far, the images per second.

    On a GPU the loss is read at the end of an epoch alone: to read it is to wait for the step that is under way.
    """

    def __init__(self, clock: EpochClock) -> None:
        self._clock = clock
        self._loss = self._auroc = ""  # as they were last read
        self._progress: Progress | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Draw it, at the first batch of an epoch or at the one that a resumed training goes on with."""
        if self._progress is not None:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
        )
        self._progress = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
        auroc = trainer.callback_metrics.get("val/auroc")
        self._auroc = "" if auroc is None else f"auroc {float(auroc):.4f} "
        title = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._progress.add_task(title, total=float(trainer.num_training_batches), facts="")
        self._progress.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move it, seldom; nothing here waits for a GPU before the epoch is over."""
        if self._progress is None or (batch_idx % 5 and not trainer.is_last_batch):
            return
        if trainer.is_last_batch or outputs["loss"].device.type == "cpu":
            self._loss = f"loss {float(outputs['loss']):.3f} "
        facts = f"{self._loss}{self._auroc}{self._clock.images_per_second:.0f} img/s"
        self._progress.update(self._progress.task_ids[0], completed=batch_idx + 1, facts=facts)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Clear it: one line stays."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave a clean terminal."""
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class Preparation(Callback):
    """Prepare each process of several: those that Lightning spawns inherit nothing of what the first one set."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._settings = settings

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Come before anything is allocated."""
        performance.prepare_process(keep_freed_memory=self._settings.keep_freed_memory, threads=self._settings.threads)


def build_callbacks(
    settings: TrainerSettings, *, monitor: str, mode: str, folder: Path, identity: Mapping[str, str]
) -> list[Callback]:
    """Make the callbacks of a training.

    Args:
        settings: the config group `trainer`.
        monitor: the metric that chooses the best epoch, where that is kept.
        mode: `max` or `min`.
        folder: where `best.ckpt` (weights) and `last.ckpt` (everything) go.
        identity: of config, data and schedule.
    """
    clock = EpochClock()
    minutes, steps = settings.checkpoint_minutes, settings.checkpoint_steps
    keeper = Keeper(folder, identity=identity, minutes=minutes, steps=steps, clock=clock)
    callbacks: list[Callback] = [keeper, clock, EpochLine()]
    if settings.devices > 1:
        callbacks.append(Preparation(settings))
    if sys.stderr.isatty():
        callbacks.append(Bar(clock))
    if settings.ema_decay is not None:
        callbacks.append(Averaging(decay=settings.ema_decay))
    if settings.compile:
        callbacks.append(Compiling())
    if settings.patience is not None:
        callbacks.append(EarlyStopping(monitor, mode=mode, patience=settings.patience))
    # Lightning puts averaged weights, which are the ones that were validated, into whole checkpoints alone.
    bare = settings.ema_decay is None
    best = ModelCheckpoint(
        dirpath=folder,
        filename="best",
        monitor=monitor if settings.keep == "best" else None,  # else each epoch replaces the one before
        mode=mode,
        save_weights_only=bare,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    return [*callbacks, best]
