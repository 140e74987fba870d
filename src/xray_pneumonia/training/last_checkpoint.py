"""The keeper of `last.ckpt`: written between two steps, from where a training goes on as if nothing had happened."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from xray_pneumonia.training import randomness
from xray_pneumonia.training.checkpoints import STATE
from xray_pneumonia.training.hashes import LAST
from xray_pneumonia.training.progress import EpochClock
from xray_pneumonia.training.stopping import Stopping


class Keeper(Callback):
    """Save before the first step of an epoch, every few minutes or steps, at a signal, and at the end.

    A checkpoint always stands *before* a step: the epoch before it is wholly over then (validated, logged, its
    schedule moved on), no gradient is half accumulated, and the random states are those that the step will draw from.
    With several processes it is written at the ends of epochs alone.

    Args:
        folder: of the checkpoints.
        identity: of config, data and schedule; written into each checkpoint.
        minutes: between two checkpoints within an epoch; None for none.
        steps: the same, counted in steps.
        clock: must not count what saving takes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: Mapping[str, str],
        minutes: float | None,
        steps: int | None,
        clock: EpochClock,
    ) -> None:
        self._path, self._identity, self._clock = folder / LAST, dict(identity), clock
        self._seconds, self._steps = None if minutes is None else 60 * minutes, steps
        self._stopping = Stopping()
        self._batch = 0
        self._trained = False
        self._saved_at = (0.0, 0)  # seconds, steps
        self._loaded: dict[str, Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hold signals back from here on: a step that is half done is worth nothing."""
        self._saved_at = (time.monotonic(), trainer.global_step)
        if trainer.world_size == 1:
            self._stopping.arm()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Go on from what was loaded, or save where it is time."""
        self._batch = batch_idx
        if self._loaded is not None:
            randomness.restore(self._loaded["random"][trainer.global_rank])
            trainer.fit_loop.restarting = False  # else Lightning skips this epoch's step of a plateau schedule
            self._loaded = None
        elif trainer.global_step > 0 and self._due(trainer, batch_idx):
            self._save(trainer)
        if self._stopping.requested and batch_idx % trainer.accumulate_grad_batches == 0:
            self._stopping.obey()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save that nothing is left to train: what follows may be stopped too."""
        self._batch, self._trained = 0, True
        self._save(trainer)
        self._stopping.obey()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let signals through."""
        self._stopping.disarm()

    def _due(self, trainer: pl.Trainer, batch_idx: int) -> bool:
        if batch_idx == 0:
            return True
        if trainer.world_size > 1 or batch_idx % trainer.accumulate_grad_batches:
            return False
        seconds, steps = self._saved_at
        late = self._seconds is not None and time.monotonic() - seconds >= self._seconds
        many = self._steps is not None and trainer.global_step - steps >= self._steps
        return late or many or self._stopping.requested

    def _save(self, trainer: pl.Trainer) -> None:
        with self._clock.stopped():
            trainer.save_checkpoint(self._path, weights_only=False)
        self._saved_at = (time.monotonic(), trainer.global_step)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what Lightning leaves out, and take back the step that it has counted as begun."""
        checkpoint[STATE] = {
            "epoch": trainer.current_epoch,
            "batch": self._batch,
            "trained": self._trained,
            "identity": self._identity,
            "random": _gathered(trainer),
            "fitting": pl_module.outputs["fitting"].kept(),  # type: ignore[index, union-attr, operator]
        }
        if not self._trained:
            _rewind(checkpoint["loops"]["fit_loop"], first=self._batch == 0)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the data and the metrics of the running epoch where they were; the random states follow at the step."""
        state = checkpoint[STATE]
        if state["trained"]:
            trainer.should_stop = True  # an early stop is no state of Lightning's
            return
        self._loaded = state
        trainer.datamodule.go_on(epoch=state["epoch"], batch=state["batch"])  # type: ignore[attr-defined]
        pl_module.outputs["fitting"].take(state["fitting"])  # type: ignore[index, union-attr, operator]


def _rewind(loops: dict[str, Any], *, first: bool) -> None:
    """Word Lightning's progress as it was before the step.

    Before the first step of an epoch, a Lightning that restarts goes once around its loop without a batch and counts
    that.
    """
    progress = loops["epoch_loop.batch_progress"]
    for count in (progress["current"], progress["total"]):
        count["ready"] = count["completed"]
    progress["is_last_batch"] = False
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= int(first)


def _gathered(trainer: pl.Trainer) -> list[dict[str, Any]]:
    """Capture the random states of every process."""
    if trainer.world_size == 1:
        return [randomness.capture()]
    states: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(states, randomness.capture())
    return states
