"""Optimisers and schedules do what their names say."""

import math

import pytest
import torch
from torch import nn

from xray_pneumonia.training import optimizers
from xray_pneumonia.training.optimizers import Horizon

HORIZON = Horizon(epochs=4, steps_per_epoch=5, monitor="val/auroc", mode="max")


def rates(make, **settings):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = make(optimizer, HORIZON, **settings)["scheduler"]
    found = []
    for _ in range(20):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("fused", [True, False])
def test_rmsprop_by_hand(fused):
    """v = rho v + (1 - rho) g^2; w -= lr g / (sqrt(v) + epsilon)."""
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = optimizers.rmsprop([weight], lr=1e-4, rho=0.9, epsilon=1e-7, weight_decay=0, fused=fused)
    expected, velocity = 1.0, 0.0
    for gradient in (0.5, -2.0, 3.0):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        velocity = 0.9 * velocity + 0.1 * gradient**2
        expected -= 1e-4 * gradient / (math.sqrt(velocity) + 1e-7)
    assert weight.item() == pytest.approx(expected, abs=1e-12)


def test_sgd_without_momentum_needs_no_nesterov_switch():
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    optimizers.sgd([weight], lr=0.1, momentum=0, nesterov=True, weight_decay=0, fused=True).step()
    assert weight.item() == pytest.approx(0.9)


def test_constant():
    assert rates(optimizers.constant) == [0.1] * 20


def test_cosine_rises_then_falls_to_its_floor():
    found = rates(optimizers.cosine, warmup_epochs=1, floor=0.1)
    assert found[:5] == sorted(found[:5])
    assert max(found) == pytest.approx(0.1)
    assert found[5:] == sorted(found[5:], reverse=True)
    assert found[-1] == pytest.approx(0.01 + 0.09 * 0.5 * (1 + math.cos(math.pi * 14 / 15)), rel=1e-5)


def test_onecycle_peaks_once():
    found = rates(optimizers.onecycle, warmup_share=0.3)[:-1]
    assert max(found) == pytest.approx(0.1)
    assert found.index(max(found)) in (5, 6)


def test_plateau_watches_the_monitored_metric():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    described = optimizers.plateau(optimizer, HORIZON, factor=0.5, patience=1)
    assert described["monitor"] == "val/auroc"
    for value in (0.9, 0.8, 0.8):
        described["scheduler"].step(value)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (optimizers.adamw, {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.1}),
        (optimizers.sgd, {"lr": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        (optimizers.rmsprop, {"lr": 1e-2, "rho": 0.9, "epsilon": 1e-7, "weight_decay": 0.1}),
    ],
)
def test_fused_steps_are_the_plain_ones(make, settings):
    """After 20 steps no weight differs by more than 1e-6."""
    ends = []
    for fused in (True, False):
        generator = torch.Generator().manual_seed(0)
        weight = nn.Parameter(torch.randn(50, 40, generator=generator))
        optimizer = make([weight], **settings, fused=fused)
        assert bool(optimizer.defaults.get("fused")) is fused
        for _ in range(20):
            weight.grad = torch.randn(50, 40, generator=generator)
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends, atol=1e-6, rtol=0)
