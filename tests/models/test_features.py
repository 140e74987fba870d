"""Features of nets: which maps are taken, and that logits stay what they are."""

import pytest
import torch
from hydra import compose, initialize_config_module

from xray_pneumonia.config import build
from xray_pneumonia.models import features
from xray_pneumonia.models.features import FeatureNet


def net_of(*overrides):
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        return build(compose("train", [*overrides, "data.image_size=32"]).model).eval()


@pytest.mark.parametrize(
    ("overrides", "layers", "width"),
    [
        (("model=resnet", "model.width=16", "model.depth=2"), ["stem", *(f"stages.{n}" for n in range(8))], 496),
        (("model=cnn", "model.filters=[4]", "model.activations=[relu]"), ["blocks.0"], 4),
        (("model=mlp",), [], 0),
    ],
)
def test_stem_and_blocks_are_the_maps_of_a_net(overrides, layers, width):
    net = net_of(*overrides)
    watched, images = FeatureNet(net, side=32), torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8)
    logits, found = watched(images)
    assert (watched.layers, watched.width, found.shape) == (layers, width, (3, width))
    assert (logits == net(images)).all()
    assert not any(layer._forward_hooks for layer in net.modules())


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small"])
def test_wide_nets_give_evenly_spaced_channels(monkeypatch, backbone):
    monkeypatch.setattr(features, "MOST_FEATURES", 100)
    watched = FeatureNet(net_of("model=torchvision", f"model.backbone={backbone}"), side=32)
    assert len(watched.layers) >= 8
    assert 50 <= watched.width <= 100
    assert watched(torch.zeros(2, 1, 32, 32, dtype=torch.uint8))[1].shape == (2, watched.width)
