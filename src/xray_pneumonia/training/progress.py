"""Report a training: the times of each epoch as metrics, one log line for each, and a progress bar."""

import logging
import math
import time
from collections import defaultdict
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


class EpochLog(Callback):
    """Log the times of each epoch and the learning rate as metrics, and one line for each epoch.

    `time/epoch_seconds` counts validation and checkpoint too, `time/images_per_second` the training alone. The training
    metrics of an epoch are complete only after every callback has seen its end, so its line comes at the start of the
    next one, or at the end.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the epoch before, and start the clock."""
        if "train/loss" in trainer.callback_metrics:
            self.on_train_end(trainer, pl_module)
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
        """Log the metrics."""
        pl_module.log_dict(
            {
                "time/epoch_seconds": time.perf_counter() - self._start,
                "time/images_per_second": self._images / self._trained,
                "optimizer/lr": trainer.optimizers[0].param_groups[0]["lr"],
            }
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the last epoch."""
        if not trainer.is_global_zero:
            return
        values = defaultdict(lambda: math.nan, {name: float(value) for name, value in trainer.callback_metrics.items()})
        names = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/auroc")
        log.info(
            "epoch %d/%s  train loss %.4f acc %.3f  val loss %.4f acc %.3f auroc %.4f  %.1f s, %.0f img/s",
            trainer.current_epoch,
            trainer.max_epochs,
            *(values[name] for name in (*names, "time/epoch_seconds", "time/images_per_second")),
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
