"""Compute binary cross-entropy and focal loss, with class weights.

Weights and smoothing act in training mode alone: the validation loss of every run is the plain loss, so that runs with
different weights can be compared (Keras does the same with `class_weight`).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from typing_extensions import TypedDict

from xray_pneumonia.errors import InputError
from xray_pneumonia.types import BelowOne, NonNegative, Positive


class WeightOfEach(TypedDict):
    """A weight for each class."""

    NORMAL: Positive
    PNEUMONIA: Positive


class WeightOfLabel(TypedDict):
    """A weight for each class, whatever it is called."""

    negative: Positive
    positive: Positive


ClassWeights = Literal["none", "balanced"] | WeightOfEach | WeightOfLabel


def resolve_class_weights(spec: ClassWeights, counts: list[int]) -> tuple[float, float]:
    """Turn `none`, `balanced` or a mapping into the weights of the negative and the positive class.

    Balanced weights are n / (2 n_class), `counts` being the training images of each class, as in scikit-learn.
    """
    if spec == "none":
        return 1.0, 1.0
    if spec == "balanced":
        return sum(counts) / (2 * counts[0]), sum(counts) / (2 * counts[1])
    negative, positive = ("negative", "positive") if "negative" in spec else ("NORMAL", "PNEUMONIA")
    return float(spec[negative]), float(spec[positive])  # type: ignore[literal-required]


def require_loss(loss: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    """Raise InputError unless a loss, maybe of others, reduces logits (B,) and labels (B,) to a number; returns it."""
    name = getattr(getattr(loss, "func", loss), "__name__", type(loss).__name__)
    try:
        value = loss(torch.tensor([-1.0, 1.0, 2.0]), torch.tensor([0.0, 0.0, 1.0]))
    except Exception as error:  # whatever its code raises
        cannot = f"cannot compute it from logits (B,) and labels (B,) of 0 and 1: {' '.join(str(error).split())[:200]}"
        raise InputError(f"loss: {name}: {cannot}") from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not torch.isfinite(value).all():
        raise InputError(f"loss: {name}: gives {value} for three images, should give one number: their mean")
    return loss if isinstance(loss, nn.Module) else Loss(loss)


class Loss(nn.Module):
    """A function (logits, labels) -> loss as a module."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Reduce logits (B,) and labels (B,) of 0 and 1 to one number."""
        return self._function(logits, labels)


class BinaryCrossEntropy(nn.Module):
    """Weighted binary cross-entropy on logits; the mean over images, not over weights, as in Keras.

    Args:
        counts: training images of each class, for balanced weights.
        class_weights: see `resolve_class_weights`.
        label_smoothing: moves the targets from 0 and 1 towards 1/2.
    """

    def __init__(self, counts: list[int], *, class_weights: ClassWeights, label_smoothing: BelowOne) -> None:
        super().__init__()
        self._normal, self._pneumonia = resolve_class_weights(class_weights, counts)
        self._smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Reduce logits (B,) and labels (B,) of 0 and 1 to one number."""
        if not self.training:
            return binary_cross_entropy_with_logits(logits, labels)
        weights = torch.where(labels > 0.5, self._pneumonia, self._normal)
        targets = labels * (1 - self._smoothing) + self._smoothing / 2
        return binary_cross_entropy_with_logits(logits, targets, weight=weights)


class FocalLoss(nn.Module):
    """Cross-entropy times (1 - p)^gamma, which lowers the weight of easy images (Lin et al., ICCV 2017).

    Args as of `BinaryCrossEntropy`; gamma 0 gives the plain cross-entropy.
    """

    def __init__(
        self, counts: list[int], *, class_weights: ClassWeights, gamma: NonNegative, label_smoothing: BelowOne
    ) -> None:
        super().__init__()
        self._normal, self._pneumonia = resolve_class_weights(class_weights, counts)
        self._gamma, self._smoothing = gamma, label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Reduce logits (B,) and labels (B,) of 0 and 1 to one number."""
        smoothing = self._smoothing if self.training else 0.0
        targets = labels * (1 - smoothing) + smoothing / 2
        entropy = binary_cross_entropy_with_logits(logits, targets, reduction="none")
        missed = torch.where(labels > 0.5, torch.sigmoid(-logits), torch.sigmoid(logits))  # 1 - p of the truth
        loss = missed**self._gamma * entropy
        if self.training:
            loss = loss * torch.where(labels > 0.5, self._pneumonia, self._normal)
        return loss.mean()
