import base64
from io import BytesIO

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from PIL import Image
from torch import nn

from xray_pneumonia.evaluation.gradcam import (
    MOST_ALIKE,
    UNIFORM,
    border_attention,
    grad_cam,
    likeness_to_random,
    map_layer,
    overlay,
    thumbnail,
)
from xray_pneumonia.models.cnn import CNN
from xray_pneumonia.models.mlp import MLP
from xray_pneumonia.models.resnet import ResNet

SIDE = 32


def films(count=5, seed=0, side=SIDE):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side)).astype(np.uint8)


def cnn():
    torch.manual_seed(0)
    kinds = {"filters": [4, 8], "activations": ["relu", "tanh"], "pool": "max", "dense": 8, "dropout": 0}
    return CNN(image_size=SIDE, mean=0, std=1, **kinds).eval()


def resnet():
    torch.manual_seed(0)
    return ResNet(width=8, depth=1, stages=2, dropout=0, mean=0.5, std=0.2, per_image=False).eval()


class BrightSpot(nn.Module):
    """Sees nothing but the upper left quarter."""

    def __init__(self):
        super().__init__()
        self.look = nn.Conv2d(1, 2, 3, padding=1)
        self.weigh = nn.Linear(2, 1)
        nn.init.constant_(self.look.weight, 1 / 9)
        nn.init.constant_(self.weigh.weight, 1.0)

    def forward(self, image):
        seen = self.look(image.float() / 255)
        return self.weigh(seen[:, :, :16, :16].mean(dim=(2, 3)))[:, 0]


@pytest.mark.parametrize("make", [cnn, resnet])
def test_maps_equal_captums_own(make):
    net, images = make(), films()
    image = torch.from_numpy(images)[:, None].float().requires_grad_()
    layer = net.blocks if isinstance(net, CNN) else net.stages
    raw = LayerGradCam(net, layer).attribute(image, relu_attributions=True)
    expected = LayerAttribution.interpolate(raw, (SIDE, SIDE), interpolate_mode="bilinear")[:, 0].detach().numpy()
    expected = expected / np.maximum(expected.max(axis=(1, 2), keepdims=True), 1e-12)
    assert grad_cam(net, images) == pytest.approx(expected, abs=1e-6)
    assert grad_cam(net, images).shape == images.shape


def test_the_layer_is_the_last_map_and_a_net_without_maps_has_none():
    net = resnet()
    assert map_layer(net, torch.zeros(1, 1, SIDE, SIDE)) is net.stages
    assert grad_cam(MLP(image_size=SIDE, hidden=4, dropout=0, mean=0, std=1), films()) is None


def test_the_map_lies_where_the_net_looks():
    heat = grad_cam(BrightSpot(), films())
    assert heat[:, :16, :16].mean() > heat[:, 17:, 17:].mean() * 0.9  # Grad-CAM averages gradients over the map
    assert heat.min() >= 0
    assert heat.max() <= 1


def test_border_attention_by_hand():
    assert border_attention(np.ones((2, 64, 64), np.float32)) == pytest.approx(UNIFORM)
    inner = np.zeros((1, 64, 64), np.float32)
    inner[0, 20:40, 20:40] = 1
    assert border_attention(inner) == 0
    assert border_attention(1 - (inner == 0)) == 0
    assert np.isnan(border_attention(np.zeros((1, 64, 64), np.float32)))


class Smooth(nn.Module):
    """Its map is the image, whatever its weights are."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, image):
        return nn.functional.avg_pool2d(image.float() * self.scale, 4)


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Smooth()

    def forward(self, image):
        return self.stem(image).mean(dim=(1, 2, 3))


def test_a_map_that_ignores_the_weights_is_found_out():
    assert likeness_to_random(Mean(), films(), seed=0, draws=1) > MOST_ALIKE


def test_random_weights_draw_other_maps_and_leave_the_generator_alone():
    net = resnet()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = likeness_to_random(net, films(), seed=0, draws=2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert again == likeness_to_random(net, films(), seed=0, draws=2)
    assert -1 <= again <= 1


def test_maps_without_evidence_leave_nothing_to_compare():
    net = BrightSpot()
    nn.init.constant_(net.weigh.weight, -1.0)
    assert np.isnan(likeness_to_random(net, films(), seed=0, draws=1))


def test_an_overlay_has_the_files_shape_and_colours_only_where_it_is_hot():
    heat = np.zeros((64, 64), np.float32)
    heat[:32] = 1
    picture = np.asarray(overlay(films(side=64)[0], heat, width=1000, height=500), int)
    assert picture.shape == (160, 320, 3)
    spread = np.ptp(picture, axis=2)
    assert spread[100:].max() == 0
    assert spread[:60].min() > 10


def test_a_thumbnail_is_small_and_holds_pixels_alone():
    uri = thumbnail(Image.fromarray(films(side=64)[0]).resize((2000, 1000)), side=160)
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    with Image.open(BytesIO(data)) as image:
        assert image.size == (160, 80)
        assert not image.getexif()
    assert len(data) < 10_000
