"""Write `last.ckpt` after each epoch, from which a training resumes exactly."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from xray_pneumonia.errors import raise_if_stopped
from xray_pneumonia.training.checkpoints import LAST, STATE


class LastCheckpoint(Callback):
    """Save before the first step of each epoch but the first, and at the end of the training.

    Only there is the epoch before complete: validated, logged, its schedule moved on. The random states are those that
    the next step draws from.
    """

    def __init__(self, folder: Path, *, identity: Mapping[str, str]) -> None:
        self._path, self._identity = folder / LAST, dict(identity)
        self._trained = False
        self._random: list[dict[str, Any]] | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save, or restore the random states of a resumed training."""
        raise_if_stopped()
        if self._random is not None:
            restore_random_states(self._random[trainer.global_rank])
            self._random = None
        elif batch_idx == 0 and trainer.global_step > 0:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save that nothing is left to train: the evaluation that follows may be interrupted too."""
        self._trained = True
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self._path, weights_only=False)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what Lightning leaves out."""
        checkpoint[STATE] = {
            "epoch": trainer.current_epoch,
            "trained": self._trained,
            "identity": self._identity,
            "random": _of_all_processes(trainer),
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Begin the next epoch, whose number Lightning tells the sampler; the random states follow at its start."""
        state = checkpoint[STATE]
        if state["trained"]:
            trainer.should_stop = True  # Lightning does not store an early stop
            return
        self._random = state["random"]
        # Lightning had begun the epoch when this was saved: it shall begin it again.
        for name in ("epoch_progress", "epoch_loop.batch_progress"):
            for count in ("current", "total"):
                progress = checkpoint["loops"]["fit_loop"][name][count]
                progress["ready"] = progress["started"] = progress["completed"]


def random_states() -> dict[str, Any]:
    """Read the states of Python, NumPy, torch and every GPU, in a form that loads without pickle."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(state: Mapping[str, Any]) -> None:
    """Continue drawing where `random_states` was called."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    for device, each in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(each, device)


def _of_all_processes(trainer: pl.Trainer) -> list[dict[str, Any]]:
    if trainer.world_size == 1:
        return [random_states()]
    states: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(states, random_states())
    return states
