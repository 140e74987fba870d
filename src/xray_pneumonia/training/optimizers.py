"""Build optimisers and learning-rate schedules, by the names and ranges that the configs use."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from xray_pneumonia.errors import InputError
from xray_pneumonia.types import BelowOne, Fraction, NonNegative, OpenFraction, Positive, Whole

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]  # weights, or groups of them
MANY_STEPS = 2.0**24  # adding one more changes nothing in single precision, and rho to this power is 0


@dataclass(frozen=True)
class Horizon:
    """What a schedule must know of the run: its length, and the metric it may watch."""

    epochs: int
    steps_per_epoch: int
    monitor: str
    mode: Literal["max", "min"]


def require_optimizer(optimizer: Any, schedule: Callable[[Optimizer], Any]) -> None:
    """Raise InputError unless code of others made an optimizer, and makes a schedule of it."""
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"optimizer: makes a {type(optimizer).__name__}, should make a torch.optim.Optimizer")
    made = schedule(optimizer)
    found = made.get("scheduler") if isinstance(made, dict) else made
    if not isinstance(found, LRScheduler):
        raise InputError(
            f"scheduler: makes a {type(found).__name__}, should make a schedule of torch.optim.lr_scheduler, or "
            "Lightning's dict with one as `scheduler`"
        )


def rmsprop(
    parameters: Parameters, *, lr: Positive, rho: BelowOne, epsilon: Positive, weight_decay: NonNegative, fused: bool
) -> Optimizer:
    """RMSprop with Keras' names (Tieleman and Hinton, 2012); epsilon is added after the root, Keras adds it before.

    torch has no fused one, but a fused Adam, which is RMSprop where it keeps no first moment and has made so many steps
    that no bias is left to correct; `fused` reads every weight once a step.
    """
    if not fused:
        return torch.optim.RMSprop(parameters, lr=lr, alpha=rho, eps=epsilon, weight_decay=weight_decay)
    optimizer = torch.optim.Adam(parameters, lr, (0.0, rho), epsilon, weight_decay=weight_decay, fused=True)
    for weight in chain.from_iterable(group["params"] for group in optimizer.param_groups):
        step = torch.tensor(MANY_STEPS, dtype=torch.float32, device=weight.device)
        moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[weight] = {"step": step, **moments}
    return optimizer


def adamw(
    parameters: Parameters, *, lr: Positive, beta1: BelowOne, beta2: BelowOne, weight_decay: NonNegative, fused: bool
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019); `fused` reads every weight once a step."""
    return torch.optim.AdamW(parameters, lr=lr, betas=(beta1, beta2), weight_decay=weight_decay, fused=fused)


def sgd(
    parameters: Parameters, *, lr: Positive, momentum: BelowOne, nesterov: bool, weight_decay: NonNegative, fused: bool
) -> Optimizer:
    """Stochastic gradient descent with momentum; `fused` reads every weight once a step."""
    nesterov = nesterov and momentum > 0  # torch refuses the one without the other
    return torch.optim.SGD(parameters, lr, momentum, nesterov=nesterov, weight_decay=weight_decay, fused=fused)


def constant(optimizer: Optimizer, horizon: Horizon) -> dict[str, Any]:
    """Keep the learning rate as it is."""
    return {"scheduler": LambdaLR(optimizer, lambda _: 1.0), "interval": "epoch"}


def cosine(optimizer: Optimizer, horizon: Horizon, *, warmup_epochs: NonNegative, floor: Fraction) -> dict[str, Any]:
    """Rise linearly, then fall along half a cosine to `floor` times the learning rate."""
    total = horizon.epochs * horizon.steps_per_epoch
    warmup = warmup_epochs * horizon.steps_per_epoch

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return floor + (1 - floor) * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * progress))))

    return {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}


def onecycle(optimizer: Optimizer, horizon: Horizon, *, warmup_share: OpenFraction) -> dict[str, Any]:
    """One rise to the learning rate and one fall to nothing (Smith and Topin, 2018)."""
    peak = [group["lr"] for group in optimizer.param_groups]
    total = horizon.epochs * horizon.steps_per_epoch
    return {"scheduler": OneCycleLR(optimizer, peak, total_steps=total, pct_start=warmup_share), "interval": "step"}


def plateau(optimizer: Optimizer, horizon: Horizon, *, factor: OpenFraction, patience: Whole) -> dict[str, Any]:
    """Cut the learning rate when the monitored metric has not improved for more than `patience` epochs."""
    schedule = ReduceLROnPlateau(optimizer, mode=horizon.mode, factor=factor, patience=patience)
    return {"scheduler": schedule, "interval": "epoch", "monitor": horizon.monitor}
