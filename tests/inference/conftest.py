"""Bundles of nets that never learned, but whose batch norms and biases are not those of a fresh net."""

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module

from xray_pneumonia.config import build, plain
from xray_pneumonia.evaluation.input_gate import fit_feature_gate, fit_thumbnail_gate
from xray_pneumonia.inference.bundle import GATE, Card, save_bundle
from xray_pneumonia.inference.ensemble import save_ensemble
from xray_pneumonia.inference.model import run_features
from xray_pneumonia.models.features import FeatureNet

SIDE = 32
RESNET = ("model=resnet", "model.width=4", "model.depth=1")


def draw_films(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE)).astype(np.uint8)


@cache
def composed(model):
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        return compose("train", [*model, f"data.image_size={SIDE}"]).model


def write(folder, seed=0, *, gate=False, model=RESNET, **changes):
    node = composed(tuple(model))
    torch.manual_seed(seed)
    net = build(node)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                tensor += 0.1 * torch.randn_like(tensor).abs() + (0.5 if name.endswith("running_var") else 0)
    facts = {
        "net": plain(node), "class_names": ["NORMAL", "PNEUMONIA"], "image_size": SIDE, "temperature": 1.5,
        "bias": -0.2, "operating_point": 0.5, "operating_point_policy": "youden", "band": [0.4, 0.6],
        "records_fingerprint": "f", "run_id": f"{seed:032x}", "versions": {},
    }  # fmt: skip
    card = Card(**facts | changes)
    save_bundle(folder, net, card)
    if gate == "features":
        fit_to(net, draw_films(40), draw_films(20, 1)).write(folder / GATE)
    elif gate:
        fit_thumbnail_gate(draw_films(40), draw_films(20, 1)).write(folder / GATE)
    return net.eval(), card


def fit_to(net, images, validation):
    """Fit a gate to a net's features."""
    watched = FeatureNet(net, side=SIDE)
    gate = fit_feature_gate(images, run_features(watched, images)[1])
    return gate.fitted(validation, run_features(watched, validation, act=gate.distances)[1][:, 0])


@pytest.fixture(scope="session")
def films():
    return draw_films


@pytest.fixture(scope="session")
def write_bundle():
    return write


@pytest.fixture
def rewrite():
    """Alter a card, as one who wants it believed would."""

    def change(folder: Path, **changes):
        path = folder / "model.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"weights_sha256": ""} | changes))

    return change


@pytest.fixture(scope="session")
def whole_ensemble(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    made = [write(folder / f"seed{seed}", seed, gate=seed == 1) for seed in (1, 2, 3)]
    nets, cards = zip(*made, strict=True)
    card = Card(**vars(cards[0]) | {"net": {}, "temperature": 0.8, "bias": 0.1})
    save_ensemble(folder / "all", ["seed1", "seed2", "seed3"], card)
    return folder, nets, cards


@pytest.fixture
def ensemble(whole_ensemble, tmp_path):
    """Copy an ensemble of three; returns its folder, the members' nets and their cards."""
    folder, nets, cards = whole_ensemble
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return tmp_path / "all", nets, cards
