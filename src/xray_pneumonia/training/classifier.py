"""PneumoniaClassifier: the one step that training and validation share."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from xray_pneumonia.errors import InputError, TrainingDiverged
from xray_pneumonia.evaluation.metrics import epoch_metrics
from xray_pneumonia.training.optimizers import Horizon, Parameters
from xray_pneumonia.types import Stage


class Outputs(Metric):
    """All logits, labels and indices of an epoch, gathered over processes at its end and not before."""

    full_state_update = False
    logit: list[Tensor]
    label: list[Tensor]
    index: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("logit", "label", "index"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, logit: Tensor, label: Tensor, index: Tensor) -> None:
        """Keep one batch; nothing is copied to the host."""
        self.logit.append(logit.detach())
        self.label.append(label)
        self.index.append(index)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, labels and indices, (N,) each."""
        return dim_zero_cat(self.logit), dim_zero_cat(self.label), dim_zero_cat(self.index)

    def kept(self) -> dict[str, Tensor]:
        """Give what has come so far, for a checkpoint in the middle of an epoch."""
        return {name: dim_zero_cat(getattr(self, name)) for name in self._defaults if getattr(self, name)}

    def take(self, kept: Mapping[str, Tensor]) -> None:
        """Go on from what `kept` gave."""
        for name, values in kept.items():
            getattr(self, name).append(values.to(self.device))


class PneumoniaClassifier(pl.LightningModule):
    """A net with its loss, optimiser and schedule.

    Args:
        net: (B, 1, H, W) uint8 -> logits (B,).
        loss: (logits, labels) -> a number; class weights act in training mode alone.
        optimizer: makes the optimiser of the net's parameters.
        scheduler: makes Lightning's description of a schedule.
        monitor: the metric that chooses the best epoch.
        mode: `max` or `min`.
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
    ) -> None:
        super().__init__()
        self.net, self.loss = net, loss
        self._optimizer, self._scheduler = optimizer, scheduler
        self._monitor, self._mode = monitor, mode
        self.outputs = nn.ModuleDict({"fitting": Outputs(), "checking": Outputs()})  # ModuleDict has no key "train"

    def forward(self, image: Tensor) -> Tensor:
        """Map raw pixels (B, 1, H, W) to logits (B,)."""
        return self.net(image)  # type: ignore[no-any-return]

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> Tensor:
        """Give the loss of one batch."""
        return self._step(batch, self.outputs["fitting"])

    def validation_step(self, batch: Mapping[str, Tensor], _: int) -> None:
        """Look at one batch."""
        self._step(batch, self.outputs["checking"])

    def _step(self, batch: Mapping[str, Tensor], outputs: nn.Module) -> Tensor:
        logits = self(batch["image"])
        loss: Tensor = self.loss(logits, batch["label"])
        weight = batch.get("weight")  # of this process, whose gradients are averaged with those of the others
        counted = slice(0) if weight == 0 else slice(None)
        outputs.update(logits[counted], batch["label"][counted], batch["index"][counted])  # type: ignore[operator]
        return loss if weight is None else loss * weight

    def on_train_epoch_end(self) -> None:
        """Log the training metrics, as they were while the weights changed."""
        self._log(self.outputs["fitting"], "train")

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log(self.outputs["checking"], "val")

    def _log(self, outputs: nn.Module, stage: Stage) -> None:
        logits, labels, _ = outputs.compute()  # type: ignore[operator]
        outputs.reset()  # type: ignore[operator]
        loss = float(self.loss(logits.float(), labels))  # a mean over images, so the epoch's is that of all its batches
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"{stage}/loss is {loss} in epoch {self.current_epoch + 1}; lower optimizer.lr or set "
                "trainer.gradient_clip"
            )
        metrics = {"loss": loss, **epoch_metrics(logits.float().cpu().numpy(), labels.cpu().numpy())}
        known = {f"{stage}/{name}": value for name, value in metrics.items() if not math.isnan(value)}
        if stage == "val" and self._monitor not in known:
            raise InputError(
                f"trainer.limit_val_batches={self.trainer.limit_val_batches}: the {len(labels)} images that validate "
                f"are of one class alone, so monitor={self._monitor} cannot be measured; "
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
        """Make optimiser and schedule."""
        optimizer = self._optimizer(self.net.parameters())
        epochs = self.trainer.max_epochs or 1
        steps = max(1, int(self.trainer.estimated_stepping_batches) // epochs)
        horizon = Horizon(epochs, steps, self._monitor, self._mode)
        return {"optimizer": optimizer, "lr_scheduler": self._scheduler(optimizer, horizon)}
