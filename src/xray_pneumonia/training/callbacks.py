"""What happens around the epochs: clocks, one line each, the bar, the checkpoints."""

import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    TQDMProgressBar,
)

from xray_pneumonia.training.trainer import TrainerSettings

log = logging.getLogger(__name__)


class EpochClock(Callback):
    """Log `time/epoch_seconds` (validation included), `time/images_per_second` (training alone) and the rate."""

    def __init__(self) -> None:
        self._start = 0.0
        self._trained = 0.0
        self._images = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start, self._images, self._trained = time.perf_counter(), 0, 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images."""
        self._images += len(batch["label"]) * trainer.world_size
        self._trained = time.perf_counter() - self._start

    @property
    def images_per_second(self) -> float:
        """The pace of the running epoch."""
        return self._images / self._trained if self._trained else 0.0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's pace."""
        pl_module.log_dict(
            {
                "time/epoch_seconds": time.perf_counter() - self._start,
                "time/images_per_second": self.images_per_second,
                "optimizer/lr": trainer.optimizers[0].param_groups[0]["lr"],
            }
        )


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


class Bar(TQDMProgressBar):
    """The loss, the validation AUROC and the images per second."""

    def __init__(self, clock: EpochClock) -> None:
        super().__init__(refresh_rate=5)
        self._clock = clock
        self._loss = math.nan

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the loss, as seldom as the bar moves: reading it waits for the device."""
        if batch_idx % self.refresh_rate == 0:
            self._loss = float(outputs["loss"])
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Choose what stands behind the bar."""
        shown = {"loss": f"{self._loss:.3f}", "img/s": f"{self._clock.images_per_second:.0f}"}
        auroc = trainer.callback_metrics.get("val/auroc")
        return {**shown, **({"val_auroc": f"{float(auroc):.4f}"} if auroc is not None else {})}


def build_callbacks(settings: TrainerSettings, *, monitor: str, mode: str, folder: Path) -> list[Callback]:
    """Make the callbacks of a training.

    Args:
        settings: the config group `trainer`.
        monitor: the metric that chooses the best epoch.
        mode: `max` or `min`.
        folder: where `best.ckpt` (weights) and `last.ckpt` (everything) go.
    """
    clock = EpochClock()
    callbacks: list[Callback] = [clock, EpochLine()]
    if sys.stderr.isatty():
        callbacks.append(Bar(clock))
    if settings.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=settings.ema_decay))
    if settings.patience is not None:
        callbacks.append(EarlyStopping(monitor, mode=mode, patience=settings.patience))
    common: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False, "auto_insert_metric_name": False}
    best = ModelCheckpoint(filename="best", monitor=monitor, mode=mode, save_weights_only=True, **common)
    last = ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **common)
    return [*callbacks, best, last]
