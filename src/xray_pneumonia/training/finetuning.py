"""Freeze parts of a net, train what lies below its last layer at a lower rate, or fit a last layer alone."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import nn
from torch.optim import Optimizer

from xray_pneumonia.errors import InputError, nearest
from xray_pneumonia.training.optimizers import Parameters
from xray_pneumonia.types import Vector

PENALTY = 0.01  # inverse strength, `C`, of a linear layer's: of 1e-4 to 0.1, where the public adult films change little


def freeze(net: nn.Module, names: Sequence[str]) -> None:
    """Keep parts of a net as they are: their weights, and the means and variances of their batch norm.

    Raises:
        InputError: there is no such part, or nothing is left to train.
    """
    parts = dict(net.named_modules())
    for name in names:
        if name not in parts:
            known = [one for one in parts if one.count(".") < 2 and any(True for _ in parts[one].parameters())]
            near = nearest(name, known) or "."
            raise InputError(f"trainer.freeze: the net has no part {name!r}{near} It has {', '.join(known[1:])}")
        parts[name].requires_grad_(False).eval()
    if not any(weight.requires_grad for weight in net.parameters()):
        raise InputError(
            f"trainer.freeze={list(names)}: leaves no weight to train; name fewer parts"
            if names
            else f"model: {type(net).__name__} has no weight to train; make its layers in its __init__"
        )


def last_layer(net: nn.Module) -> nn.Module:
    """Find the last layer that has weights, which makes the logit."""
    return [layer for layer in net.modules() if any(True for _ in layer.parameters(recurse=False))][-1]


def parameter_groups(net: nn.Module, *, backbone_lr: float) -> Parameters:
    """List what is trained: as one group, or the last layer's weights before those below it."""
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    if backbone_lr == 1:
        return weights
    last = {id(weight) for weight in last_layer(net).parameters()}
    parts = [[weight for weight in weights if (id(weight) in last) == here] for here in (True, False)]
    return [{"params": part, "share": share} for part, share in zip(parts, (1.0, backbone_lr), strict=True) if part]


def slow_backbone(optimizer: Optimizer) -> None:
    """Lower the learning rates as `parameter_groups` says, before a schedule takes them up."""
    for group in optimizer.param_groups:
        group["lr"] *= group.get("share", 1.0)


def fit_linear(features: Vector, label: npt.ArrayLike) -> tuple[Vector, float]:
    """Fit a penalised logistic regression of labels (N,) on features (N, D); returns weights (D,) and bias."""
    from sklearn.linear_model import LogisticRegression  # most of a second to import

    centre, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.maximum(spread, 1e-3 * np.median(spread) or 1.0)  # of channels that hardly change
    fitted = LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=2000)
    fitted.fit((features - centre) / spread, np.asarray(label))
    weights = fitted.coef_[0] / spread
    return weights, float(fitted.intercept_[0] - weights @ centre)
