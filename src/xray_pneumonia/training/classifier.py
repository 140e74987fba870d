"""Defines what Lightning trains: `PneumoniaClassifier`, the module around a net, and its data; computes logits."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from xray_pneumonia.errors import InputError, TrainingDiverged
from xray_pneumonia.evaluation.metrics import epoch_metrics
from xray_pneumonia.training.finetuning import parameter_groups, slow_backbone
from xray_pneumonia.training.optimizers import Horizon, Parameters
from xray_pneumonia.types import Stage


class Outputs(Metric):
    """All logits and labels of an epoch, gathered over processes at its end and not before."""

    full_state_update = False
    logit: list[Tensor]
    label: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("logit", default=[], dist_reduce_fx="cat")
        self.add_state("label", default=[], dist_reduce_fx="cat")

    def update(self, logit: Tensor, label: Tensor) -> None:
        """Keep one batch; nothing is copied to the host."""
        self.logit.append(logit.detach())
        self.label.append(label)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return logits and labels, (N,) each."""
        return dim_zero_cat(self.logit), dim_zero_cat(self.label)


class PneumoniaClassifier(pl.LightningModule):
    """A net with its loss, optimiser and schedule.

    Args:
        net: (B, 1, H, W) uint8 -> logits (B,).
        loss: (logits, labels) -> a number; class weights act in training mode alone.
        optimizer: builds the optimiser of the net's parameters.
        scheduler: builds Lightning's description of a schedule.
        monitor: the metric that chooses the best epoch.
        mode: `max` or `min`.
        backbone_lr: share of the learning rate below the last layer.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        loss: nn.Module,
        optimizer: Callable[[Parameters], Optimizer],
        scheduler: Callable[[Optimizer, Horizon], dict[str, Any]],
        monitor: str,
        mode: Literal["max", "min"],
        backbone_lr: float = 1.0,
    ) -> None:
        super().__init__()
        self.net, self.loss = net, loss
        self._optimizer, self._scheduler = optimizer, scheduler
        self.monitor, self.mode, self._backbone_lr = monitor, mode, backbone_lr
        self.outputs = nn.ModuleDict({"fitting": Outputs(), "checking": Outputs()})  # ModuleDict has no key "train"

    def forward(self, image: Tensor) -> Tensor:
        """Map raw pixels (B, 1, H, W) to logits (B,)."""
        return self.net(image)  # type: ignore[no-any-return]

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> Tensor:
        """Return the loss of one batch."""
        return self._step(batch, self.outputs["fitting"])

    def validation_step(self, batch: Mapping[str, Tensor], _: int) -> None:
        """Keep the outputs of one batch."""
        self._step(batch, self.outputs["checking"])

    def _step(self, batch: Mapping[str, Tensor], outputs: nn.Module) -> Tensor:
        logits = self(batch["image"])
        outputs.update(logits, batch["label"])  # type: ignore[operator]
        return self.loss(logits, batch["label"])  # type: ignore[no-any-return]

    def on_train_epoch_end(self) -> None:
        """Log the training metrics, as they were while the weights changed."""
        self._log(self.outputs["fitting"], "train")

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log(self.outputs["checking"], "val")

    def _log(self, outputs: nn.Module, stage: Stage) -> None:
        logits, labels = outputs.compute()  # type: ignore[operator]
        outputs.reset()  # type: ignore[operator]
        loss = float(self.loss(logits.float(), labels))  # a mean over images, so the epoch's is that of all its batches
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"{stage}/loss is {loss} in epoch {self.current_epoch + 1}; lower optimizer.lr or set "
                "trainer.gradient_clip"
            )
        metrics = {"loss": loss, **epoch_metrics(logits.float().cpu().numpy(), labels.cpu().numpy())}
        known = {f"{stage}/{name}": value for name, value in metrics.items() if not math.isnan(value)}
        if stage == "val" and self.monitor not in known:
            raise InputError(
                f"trainer.limit_val_batches={self.trainer.limit_val_batches}: the {len(labels)} images that validate "
                f"are of one class alone, so monitor={self.monitor} cannot be measured; "
                "trainer.limit_val_batches=null takes all images, monitor=val/loss needs one class"
            )
        self.log_dict(known, on_epoch=True, on_step=False, batch_size=1)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm, as Lightning does, but with fused optimisers too: only scaled 16-bit gradients hinder them."""
        if self.trainer.precision == "16-mixed":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            nn.utils.clip_grad_norm_(self.net.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> Any:
        """Build optimiser and schedule."""
        optimizer = self._optimizer(parameter_groups(self.net, backbone_lr=self._backbone_lr))
        slow_backbone(optimizer)
        epochs = self.trainer.max_epochs or 1
        steps = max(1, int(self.trainer.estimated_stepping_batches) // epochs)
        horizon = Horizon(epochs, steps, self.monitor, self.mode)
        return {"optimizer": optimizer, "lr_scheduler": self._scheduler(optimizer, horizon)}


class LightningData(pl.LightningDataModule):
    """Serves the batches of a data module to Lightning, from pinned memory where the net is on a GPU."""

    def __init__(self, data: Any) -> None:
        super().__init__()
        self._data = data

    def train_dataloader(self) -> Any:
        """Serve augmented batches, in a new order each epoch."""
        return self._data.train_dataloader(pin_memory=self._on_gpu)

    def val_dataloader(self) -> Any:
        """Serve every validation image once, in order."""
        return self._data.val_dataloader(pin_memory=self._on_gpu)

    @property
    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def predict_logits(
    net: nn.Module, batches: Iterable[Mapping[str, Tensor]], *, device: torch.device
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Run a net over batches; returns the records' row numbers (N,) and their logits (N,)."""
    net.eval().to(device)
    index, logits = [], []
    with torch.inference_mode():
        for batch in batches:
            logits.append(net(batch["image"].to(device)).double().cpu())
            index.append(batch["index"])
    return torch.cat(index).numpy(), torch.cat(logits).numpy()
