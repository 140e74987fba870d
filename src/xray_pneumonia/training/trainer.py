"""The config group `trainer`, and Lightning's trainer built from it."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from xray_pneumonia.errors import InputError, raise_if_stopped
from xray_pneumonia.types import BelowOne, Count, Fraction, Positive, Processes, Text

if TYPE_CHECKING:  # a config is checked without Lightning, which takes seconds to import
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import Callback
    from pytorch_lightning.loggers import Logger

log = logging.getLogger(__name__)
for name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)  # devices and tips


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """The config group `trainer`, whose file explains the other keys.

    Args:
        keep: the epoch that becomes the model: the best by the monitored metric, or the last, so that none is chosen
            on validation; a schedule that ends at a low learning rate makes the last a good one.
        devices: processes on the CPU, or GPUs. Several make the steps that one would make on batches so many times as
            large, but that dropout draws the same mask in each, that batch norm takes the mean and variance of its part
            of a batch, of which the first process's are kept, and that an epoch's first images come again at its end
            where images do not divide evenly.
        precision: of the arithmetic; bf16 is emulated, and slow, on many CPUs.
        freeze: parts of the net that stay as they are, batch norm with them; `stem` and `stages.0` of a ResNet.
        backbone_lr: share of the learning rate with which all but the last layer is trained.
        gradient_clip: largest norm of the gradient; null leaves it alone.
        accumulate_batches: batches that make one step.
        limit_train_batches: batches of an epoch; null for all. `limit_val_batches`: the same for validation.
        checkpoint_minutes: without effect, as `checkpoint_steps`; both stand in stored configs.
    """

    max_epochs: Count
    keep: Literal["best", "last"]
    accelerator: Literal["auto", "cpu", "gpu"]
    devices: Processes
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]
    patience: Count | None
    ema_decay: BelowOne | None
    freeze: list[Text]
    backbone_lr: Fraction
    gradient_clip: Positive | None
    accumulate_batches: Count
    limit_train_batches: Count | None
    limit_val_batches: Count | None
    deterministic: bool
    channels_last: bool
    compile: bool
    keep_freed_memory: bool
    threads: Processes | None
    checkpoint_minutes: Positive | None
    checkpoint_steps: Count | None

    def __post_init__(self) -> None:
        """Refuse what this machine does not have, and warn of keys without effect."""
        if (self.checkpoint_minutes, self.checkpoint_steps) != (10, None):
            log.warning(
                "trainer.checkpoint_minutes=%s trainer.checkpoint_steps=%s: without effect, since checkpoints are "
                "written after each epoch",
                self.checkpoint_minutes,
                self.checkpoint_steps,
            )
        gpus = torch.cuda.device_count()
        if self.accelerator == "gpu" and self.devices > gpus:
            raise InputError(
                f"trainer.accelerator=gpu trainer.devices={self.devices}: this machine has {gpus} GPUs that torch can "
                "use; choose trainer=cpu, or trainer.accelerator=auto"
            )

    @property
    def on_gpu(self) -> bool:
        """Whether Lightning will train on a GPU."""
        return self.accelerator != "cpu" and torch.cuda.is_available()


def build_trainer(
    settings: TrainerSettings, *, callbacks: "list[Callback]", loggers: "list[Logger]", folder: Path
) -> "pl.Trainer":
    """Build Lightning's trainer; `folder` takes what Lightning itself might write."""
    import pytorch_lightning as pl

    from xray_pneumonia.training.checkpoints import AtomicCheckpointIO

    logging.getLogger(pl.__name__).setLevel(logging.WARNING)  # its import sets INFO: devices, tips, "stopped"
    return pl.Trainer(
        max_epochs=settings.max_epochs,
        accelerator=settings.accelerator,
        devices=settings.devices,
        # Spawned, not started from the command line: one process leads, and the others only fit.
        strategy="ddp_spawn" if settings.devices > 1 else "auto",
        precision=settings.precision,
        gradient_clip_val=settings.gradient_clip,
        accumulate_grad_batches=settings.accumulate_batches,
        limit_train_batches=settings.limit_train_batches,
        limit_val_batches=settings.limit_val_batches,
        deterministic=settings.deterministic,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # EpochSampler is one
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,  # see progress.ProgressBar
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
    )


def fit(trainer: "pl.Trainer", classifier: "pl.LightningModule", data: Any, *, start: Path | None) -> None:
    """Train on a data module, from the beginning (`start` is None) or from a checkpoint."""
    from xray_pneumonia.training.classifier import LightningData

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # what is frozen
        if start is not None:  # these are as they should be
            warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided.*")
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty.*")
        try:
            trainer.fit(classifier, datamodule=LightningData(data), ckpt_path=start, weights_only=True)
        except SystemExit:  # with code 0: Lightning's own answer to SIGTERM, where a destructor swallowed Stopped
            raise_if_stopped()
            raise
