"""The exponential average of the weights, where the weights are: no step carries them to the host or waits for it."""

import itertools
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn


class Averaging(WeightAveraging):
    """Average weights and buffers over the steps; validation and what follows the training see the average.

    Lightning's own `EMAWeightAveraging` does the same sums, to the bit, but makes the average before the net moves to
    its device, leaves it on the host, and asks in each step how often it was updated.

    Args:
        decay: the share of the average that stays in each step.
    """

    def __init__(self, *, decay: float) -> None:
        super().__init__()
        self._decay = decay

    @property
    def state_key(self) -> str:
        """The name of its state in checkpoints, those that Lightning's own wrote included."""
        return "EMAWeightAveraging"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the average where the net will be."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average after a step; the first one makes it the weights themselves."""
        average, steps = self._average_model, trainer.global_step
        if average is None or steps <= self._latest_update_step:
            return
        move(average.module, pl_module, decay=self._decay if self._latest_update_step else 0)
        average.n_averaged += 1  # Lightning's checkpoints hold it
        self._latest_update_step = steps


@torch.no_grad()
def move(average: nn.Module, net: nn.Module, *, decay: float) -> None:
    """Leave `decay` of the average and add the rest from the net; whole numbers are cut off after it."""
    ours, theirs = _tensors(average), _tensors(net)
    if not decay:
        torch._foreach_copy_(ours, theirs)
        return
    for dtype in {each.dtype for each in ours}:  # one call for all of a type
        old = [each for each in ours if each.dtype == dtype]
        new = torch._foreach_mul([each for each in theirs if each.dtype == dtype], 1 - decay)
        torch._foreach_copy_(old, torch._foreach_add(torch._foreach_mul(old, decay), new))


def _tensors(net: nn.Module) -> list[Tensor]:
    return [each.detach() for each in itertools.chain(net.parameters(), net.buffers())]
