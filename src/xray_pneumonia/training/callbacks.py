"""Build the callbacks of a training: checkpoints, progress, averaging, early stopping, checks."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)

from xray_pneumonia.errors import InputError
from xray_pneumonia.training import performance
from xray_pneumonia.training.last_checkpoint import LastCheckpoint
from xray_pneumonia.training.progress import EpochLog, ProgressBar
from xray_pneumonia.training.trainer import TrainerSettings

log = logging.getLogger(__name__)


class DataCheck(Callback):
    """Check after each epoch that the data are still those that the run says it was trained on."""

    def __init__(self, require: Callable[[], None]) -> None:
        self._require = require

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check, in one process."""
        if trainer.is_global_zero:
            self._require()


class ProcessSetup(Callback):
    """Set up each process of several: those that Lightning spawns inherit no settings."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._settings = settings

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Run before anything is allocated."""
        performance.prepare_process(keep_freed_memory=self._settings.keep_freed_memory, threads=self._settings.threads)


class Compile(Callback):
    """Compile the net in each process while it trains; the evaluation that follows needs its layers one by one."""

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self._backend = backend

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compile, which takes place at the first step of each image size."""
        log.info("speed: the net is compiled; the first steps take longer")
        pl_module.net.compile(backend=self._backend)  # type: ignore[operator, union-attr]

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Undo it, for which torch has no function."""
        pl_module.net._compiled_call_impl = None  # type: ignore[union-attr]


def require_kept(own: Sequence[Any], settings: TrainerSettings) -> list[Callback]:
    """Check the callbacks that a config names; returns them.

    Raises:
        InputError: one is none, or the weights that it averages would not be kept.
    """
    for one in own:
        if not isinstance(one, Callback):
            raise InputError(f"callbacks: {one!r}: should be a pytorch_lightning.Callback")
        if isinstance(one, StochasticWeightAveraging) and settings.keep != "last":
            raise InputError(
                "callbacks: StochasticWeightAveraging averages the weights at the end of the training, which "
                f"trainer.keep={settings.keep} would not keep; set trainer.keep=last trainer.patience=null"
            )
    return [*own]


def keep_averaged(trainer: pl.Trainer, path: Path) -> None:
    """Write the weights into the kept checkpoint that StochasticWeightAveraging left behind after the last epoch."""
    if any(isinstance(one, StochasticWeightAveraging) for one in trainer.callbacks):  # type: ignore[attr-defined]
        kept = torch.load(path, map_location="cpu", weights_only=True)
        kept["state_dict"] = trainer.lightning_module.state_dict()
        trainer.strategy.checkpoint_io.save_checkpoint(kept, path)


def build_callbacks(
    settings: TrainerSettings,
    *,
    own: Sequence[Callback],
    monitor: str,
    mode: str,
    folder: Path,
    identity: Mapping[str, str],
) -> list[Callback]:
    """Build the callbacks of a training; an EarlyStopping among its `own` takes the place of `trainer.patience`.

    The `folder` gets `best.ckpt` (weights) and `last.ckpt` (everything).
    """
    callbacks: list[Callback] = [*own, LastCheckpoint(folder, identity=identity), EpochLog()]
    if settings.devices > 1:
        callbacks.append(ProcessSetup(settings))
    if sys.stderr.isatty():
        callbacks.append(ProgressBar())
    if settings.ema_decay is not None:
        device = "cuda" if settings.on_gpu else "cpu"  # else Lightning averages on the CPU
        callbacks.append(EMAWeightAveraging(device=device, decay=settings.ema_decay))
    if settings.compile:
        callbacks.append(Compile())
    if settings.patience is not None and not any(isinstance(one, EarlyStopping) for one in own):
        callbacks.append(EarlyStopping(monitor, mode=mode, patience=settings.patience))
    best = ModelCheckpoint(
        dirpath=folder,
        filename="best",
        monitor=monitor if settings.keep == "best" else None,  # else each epoch replaces the one before
        mode=mode,
        # Lightning puts averaged weights, which are the ones that were validated, into whole checkpoints alone.
        save_weights_only=settings.ema_decay is None,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    return [*callbacks, best]
