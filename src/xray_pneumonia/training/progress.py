"""Report a training: the times of each epoch as metrics, one log line for each, and a progress bar."""

import logging
import math
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, RichProgressBar

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


class ProgressBar(RichProgressBar):
    """Show Lightning's bar on standard error, without the id of the run."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=5, console_kwargs={"stderr": True})

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Leave out the version that Lightning adds."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
