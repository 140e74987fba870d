"""The levers: safe to call, and without effect on results beyond rounding."""

import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_module

from xray_pneumonia.config import build
from xray_pneumonia.models.cnn import CNN
from xray_pneumonia.training import speed
from xray_pneumonia.training.callbacks import Preparation, build_callbacks


def net_of(filters):
    torch.manual_seed(0)
    return CNN(image_size=32, filters=filters, activations=["relu"] * 2, pool="max", dense=8, dropout=0, mean=0, std=1)


def is_channels_last(net):
    return net.blocks[1][0].weight.is_contiguous(memory_format=torch.channels_last)


def test_layout_changes_no_result():
    net = net_of([16, 32])
    image = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)
    before = net(image)
    assert not is_channels_last(speed.lay_out(net, channels_last=False))
    assert is_channels_last(speed.lay_out(net, channels_last=True))
    torch.testing.assert_close(net(image), before, atol=1e-6, rtol=1e-5)


def test_narrow_nets_keep_the_layout_that_does_not_crash():
    assert not is_channels_last(speed.lay_out(net_of([16, 8]), channels_last=True))


@pytest.mark.slow
def test_batches_of_changing_size_do_not_corrupt_memory():
    """Every width that gets channels_last survives; the smallest one that would not is kept from it."""
    code = (
        "import torch\n"
        "from xray_pneumonia.models.resnet import ResNet\n"
        "from xray_pneumonia.training.speed import lay_out\n"
        "for width in (4, 8, 16, 24):\n"
        "  for seed in range(15):\n"
        "    torch.manual_seed(seed)\n"
        "    net = ResNet(width=width, depth=1, stages=2, dropout=0, mean=0.5, std=0.2, per_image=False)\n"
        "    net = lay_out(net, channels_last=True)\n"
        "    for batch in (64, 31): net(torch.zeros(batch, 1, 32, 32)).square().mean().backward()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_allocator_keeps_freed_memory_in_a_process_of_its_own():
    code = (
        "from xray_pneumonia.training.speed import keep_memory; import ctypes, sys; kept = keep_memory();"
        "assert kept == hasattr(ctypes.CDLL(None), 'gnu_get_libc_version') or sys.platform != 'linux'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("trainer", "prepared"), [("ddp", [{"keep_freed_memory": True, "threads": 1}]), ("cpu", [])])
def test_each_process_of_several_is_prepared(monkeypatch, tmp_path, trainer, prepared):
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        settings = build(compose("train", [f"trainer={trainer}"]).trainer)
    made = build_callbacks(settings, monitor="val/auroc", mode="max", folder=tmp_path, identity={})
    seen = []
    monkeypatch.setattr(speed, "prepare_process", lambda **settings: seen.append(settings))
    for callback in made:
        if isinstance(callback, Preparation):
            callback.setup(None, None, "fit")
    assert seen == prepared
