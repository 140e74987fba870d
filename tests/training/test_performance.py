"""The levers: safe to call, and without effect on results beyond rounding."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from xray_pneumonia.models.cnn import CNN
from xray_pneumonia.models.layers import to_channels_last
from xray_pneumonia.training import performance as speed
from xray_pneumonia.training.optimizers import rmsprop


def net_of(filters):
    torch.manual_seed(0)
    return CNN(image_size=32, filters=filters, activations=["relu"] * 2, pool="max", dense=8, dropout=0, mean=0, std=1)


def is_channels_last(net):
    return net.blocks[1][0].weight.is_contiguous(memory_format=torch.channels_last)


def test_layout_changes_no_result():
    net = net_of([16, 32])
    image = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)
    before = net(image)
    assert not is_channels_last(net)
    assert is_channels_last(to_channels_last(net))
    torch.testing.assert_close(net(image), before, atol=1e-6, rtol=1e-5)


def test_narrow_nets_keep_the_layout_that_does_not_crash():
    assert not is_channels_last(to_channels_last(net_of([16, 8])))


@pytest.mark.slow
def test_batches_of_changing_size_do_not_corrupt_memory():
    """Every width that gets channels_last survives; the smallest one that would not is kept from it."""
    code = (
        "import torch\n"
        "from xray_pneumonia.models.resnet import ResNet\n"
        "from xray_pneumonia.models.layers import to_channels_last\n"
        "for width in (4, 8, 16, 24):\n"
        "  for seed in range(15):\n"
        "    torch.manual_seed(seed)\n"
        "    net = ResNet(width=width, depth=1, stages=2, dropout=0, mean=0.5, std=0.2, per_image=False)\n"
        "    net = to_channels_last(net)\n"
        "    for batch in (64, 31): net(torch.zeros(batch, 1, 32, 32)).square().mean().backward()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def trained(net, *, fused):
    """The weights after five steps of the notebook's optimiser."""
    optimizer = rmsprop(net.parameters(), lr=1e-4, rho=0.9, epsilon=1e-7, weight_decay=0, fused=fused)
    draws = torch.Generator().manual_seed(0)
    for _ in range(5):
        images = torch.randint(0, 256, (16, 1, 32, 32), dtype=torch.uint8, generator=draws)
        labels = torch.randint(0, 2, (16,), generator=draws).float()
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(net(images), labels).backward()
        optimizer.step()
    return [weight.detach().contiguous() for weight in net.parameters()]


def require_same_bits_whatever_becomes_of_memory():
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    plain = trained(net_of([16, 32]), fused=True)
    assert sys.platform != "linux" or speed.keep_memory() == hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
    speed.prepare_process(keep_freed_memory=True, threads=None)
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.backends.cudnn.allow_tf32
    fast = trained(net_of([16, 32]), fused=True)
    assert all(torch.equal(one, other) for one, other in zip(plain, fast, strict=True))


def test_what_becomes_of_memory_changes_no_bit():
    """In a process of its own: what glibc was told cannot be taken back."""
    code = "import test_performance; test_performance.require_same_bits_whatever_becomes_of_memory()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def test_the_levers_of_arithmetic_change_a_training_by_rounding_alone():
    plain, fast = net_of([16, 32]), to_channels_last(net_of([16, 32]))
    before = [weight.detach().clone() for weight in plain.parameters()]
    for number, (convolution, pool, activation) in enumerate(plain.blocks):
        plain.blocks[number] = nn.Sequential(convolution, activation, pool)
    weights = trained(plain, fused=False)
    assert max(float((one - other).abs().max()) for one, other in zip(weights, before, strict=True)) > 5e-4
    torch.testing.assert_close(trained(fast, fused=True), weights, rtol=0, atol=1e-6)


SMALL = [
    *("data=synthetic", "data.synthetic_patients=240", "data.image_size=32", "augmentation=none"),
    *("model=cnn", "model.filters=[16,32,32]", "model.dense=32", "optimizer=rmsprop"),
    *("trainer=cpu", "trainer.max_epochs=2", "trainer.keep_freed_memory=false"),
    *("tracking.system_metrics=false", "evaluation=quick"),
]
PLAIN = ["trainer.channels_last=false", "optimizer.fused=false"]


@pytest.mark.long
def test_the_fast_path_reaches_the_validation_auroc_of_the_plain_one(xray, home):
    def auroc(*overrides):
        outcome = xray("train", *SMALL, f"home={home}", *overrides)
        assert outcome.code == 0, outcome.err
        return float(outcome.out.splitlines()[-1].partition("val/auroc=")[2])

    fast, plain = ([auroc(f"seed={seed}", *keys) for seed in range(3)] for keys in ([], PLAIN))
    assert len(set(plain)) > 1  # else the three seeds say nothing
    assert fast == pytest.approx(plain, abs=0.005)  # three times the learning rate moves it by 0.2
