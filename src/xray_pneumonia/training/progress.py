"""How long an epoch takes, and how many images a second it trains on."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback


class EpochClock(Callback):
    """Log `time/epoch_seconds` (validation included), `time/images_per_second` (training alone) and the rate.

    Checkpoints are not counted, nor is the time in which an interrupted run did not run.
    """

    def __init__(self) -> None:
        self._start = 0.0
        self._trained = 0.0
        self._images = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on in the middle of an epoch, where a resumed training stands."""
        self._start = time.perf_counter() - self._trained

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start, self._images, self._trained = time.perf_counter(), 0, 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images; the last step of an epoch is waited for, since a GPU has only been told of it until then."""
        self._images += len(batch["label"]) * trainer.world_size
        if trainer.is_last_batch and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._trained = time.perf_counter() - self._start

    @property
    def images_per_second(self) -> float:
        """The pace of the running epoch."""
        return self._images / self._trained if self._trained else 0.0

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Do not count what the block takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - began

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's pace."""
        pl_module.log_dict(
            {
                "time/epoch_seconds": time.perf_counter() - self._start,
                "time/images_per_second": self.images_per_second,
                "optimizer/lr": trainer.optimizers[0].param_groups[0]["lr"],
            }
        )

    def state_dict(self) -> dict[str, float]:
        """Keep what the running epoch has taken so far."""
        return {"trained": self._trained, "images": self._images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._trained, self._images = state_dict["trained"], state_dict["images"]
