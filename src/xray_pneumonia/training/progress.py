"""Report a training: the times of each epoch as metrics, one log line for each, and a progress bar."""

import logging
import math
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


class EpochClock(Callback):
    """Log `time/epoch_seconds` (with validation and checkpoint), `time/images_per_second` (training) and the rate."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start, self._images, self._trained = time.perf_counter(), 0, 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images; wait for a GPU at the last step alone, since its steps are only queued until then."""
        self._images += len(batch["label"]) * trainer.world_size
        if trainer.is_last_batch:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            self._trained = time.perf_counter() - self._start

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's times."""
        pl_module.log_dict(
            {
                "time/epoch_seconds": time.perf_counter() - self._start,
                "time/images_per_second": self._images / self._trained,
                "optimizer/lr": trainer.optimizers[0].param_groups[0]["lr"],
            }
        )


class EpochLine(Callback):
    """Log one line for each epoch.

    The training metrics of an epoch are complete only after every callback has seen its end, so the line comes at the
    start of the next epoch, or at the end.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the epoch before."""
        if "train/loss" in trainer.callback_metrics:
            self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the last epoch."""
        if not trainer.is_global_zero:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        log.info(
            "epoch %d/%s  train loss %.4f acc %.3f  val loss %.4f acc %.3f auroc %.4f  %.1f s, %.0f img/s",
            trainer.current_epoch,
            trainer.max_epochs,
            *(values.get(f"train/{name}", math.nan) for name in ("loss", "accuracy")),
            *(values.get(f"val/{name}", math.nan) for name in ("loss", "accuracy", "auroc")),
            *(values.get(f"time/{name}", math.nan) for name in ("epoch_seconds", "images_per_second")),
        )


class ProgressBar(Callback):
    """Show a bar for each epoch on standard error, which is gone before the next line is logged.

    Lightning's own stays on the screen: log lines are glued to it. And it counts epochs from 0.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw it."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        title = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._progress.add_task(title, total=float(trainer.num_training_batches))
        self._progress.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move it."""
        self._progress.advance(self._progress.task_ids[0])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Clear it."""
        self._progress.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Clear it, too."""
        self._progress.stop()
