"""Trained models from folders: answers of bundles and ensembles, what is refused; MLflow is not imported."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from xray_pneumonia.errors import InputError
from xray_pneumonia.inference.ensemble import save_ensemble
from xray_pneumonia.inference.loading import load_bundle, load_model

SIDE = 32


def opened(place):
    return load_model(place, name="it")


def test_a_folder_answers_as_its_net_and_card_say(tmp_path, write_bundle, films):
    net, card = write_bundle(tmp_path)
    model = opened(tmp_path)
    images = films(70)
    with torch.inference_mode():
        logit = net(torch.from_numpy(images)[:, None]).double().numpy() / card.temperature + card.bias
    expected = 1 / (1 + np.exp(-logit))
    probability = model.probabilities(images)
    assert probability.dtype == np.float64
    np.testing.assert_allclose(probability, expected, atol=1e-6)
    point = float(np.median(probability))
    low, high = np.quantile(probability, [0.3, 0.7])
    table = replace(model, card=replace(card, operating_point=point, band=[low, high])).decide(images)
    assert (table["label"] == np.where(probability >= point, "PNEUMONIA", "NORMAL")).all()
    assert (table["operating_point"] == point).all()
    unsure = (probability >= low) & (probability <= high)
    assert unsure.any()
    assert (table["answer"] == np.where(unsure, "look closer", table["label"].str.lower())).all()
    assert (table["abstention"] == np.where(unsure, "uncertain", "")).all()
    assert table["gate"].isna().all()


def test_the_gate_stops_what_is_no_film(tmp_path, write_bundle, films):
    write_bundle(tmp_path, gate=True)
    model = opened(tmp_path)
    images = films(21)
    look = model.gate.anomaly(images)[:, 0]
    model = replace(model, gate=replace(model.gate, limits=np.array([np.median(look), 1e9])))
    table = model.decide(images)
    strange = table["gate"] > 1
    assert (strange == (look > np.median(look))).all()
    assert set(table["abstention"][strange]) == {"no frontal chest film"}
    assert "no frontal chest film" not in set(table["abstention"][~strange])
    assert set(table["answer"][strange]) == {"look closer"}


def test_a_gpu_computes_answers_with_all_32_bits(tmp_path, write_bundle, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as torch starts
    write_bundle(tmp_path)
    opened(tmp_path)
    assert not torch.backends.cudnn.allow_tf32


def test_one_pass_gives_logits_and_the_distances_that_the_gate_judges(tmp_path, write_bundle, films, monkeypatch):
    net, _ = write_bundle(tmp_path, gate="features")
    model, images = opened(tmp_path), films(21)
    passes = []
    monkeypatch.setattr(
        model.net.stem, "forward", lambda x, old=model.net.stem.forward: passes.append(len(x)) or old(x)
    )
    assert len(model.decide(images)) == 21
    assert sum(passes) <= 21 + 4  # blank images find the maps
    with torch.inference_mode():
        maps = [net.stem(net.pixels(torch.from_numpy(images)[:, None]))]
        for block in net.stages:
            maps.append(block(maps[-1]))
    means = torch.cat([one.mean((2, 3)) for one in maps], dim=1).double().numpy()
    distances = model.gate.distances(means)
    np.testing.assert_allclose(model.measure(images)[1], distances, rtol=1e-3)
    limits = np.array([np.median(distances), 1e9])
    table = replace(model, gate=replace(model.gate, limits=limits)).decide(images)
    np.testing.assert_allclose(table["gate"], distances / limits[0], rtol=1e-3)
    assert set(table["abstention"][table["gate"] > 1]) == {"unlike the films it learned from"}
    assert len(opened(tmp_path).decide(films(0))) == 0


def test_an_ensemble_takes_the_mean_of_its_members_distances_and_its_own_limit(tmp_path, write_bundle, films):
    for seed in (1, 2):
        write_bundle(tmp_path / f"seed{seed}", seed, gate="features")
    card = opened(tmp_path / "seed1").card
    save_ensemble(tmp_path / "all", ["seed1", "seed2"], replace(card, net={}))
    members = [opened(tmp_path / f"seed{seed}") for seed in (1, 2)]
    mean = np.mean([member.measure(films(9))[1] for member in members], axis=0)
    joined = opened(tmp_path / "all")
    np.testing.assert_allclose(joined.measure(films(9))[1], mean)
    assert joined.gate.limits == pytest.approx(np.mean([member.gate.limits for member in members], axis=0))
    replace(joined.gate, limits=np.array([np.median(mean), 1e9])).write(tmp_path / "all" / "gate.npz")
    assert (opened(tmp_path / "all").decide(films(9))["gate"] > 1).sum() == 4
    write_bundle(tmp_path / "seed2", 2, gate=True)
    with pytest.raises(InputError, match="a member measures none"):
        opened(tmp_path / "all")


def test_a_gate_of_another_net_is_refused(tmp_path, write_bundle):
    write_bundle(tmp_path, gate="features")
    write_bundle(tmp_path, model=("model=mlp",))
    with pytest.raises(InputError, match=r"gate.npz: knows 64 features, the net has 0"):
        opened(tmp_path)


def test_a_model_without_band_answers_everything(tmp_path, write_bundle, films):
    write_bundle(tmp_path, band=[])
    assert (opened(tmp_path).decide(films(9))["abstention"] == "").all()


def test_no_images_and_wrong_images(tmp_path, write_bundle, films):
    write_bundle(tmp_path, gate=True)
    model = opened(tmp_path)
    assert len(model.decide(films(0))) == 0
    for wrong in (films(2).astype(np.float32), films(2)[:, :16], films(2)[None]):
        with pytest.raises(ValueError, match="reads uint8"):
            model.probabilities(wrong)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"class_names": ["PNEUMONIA", "NORMAL"]}, "in this order"),
        ({"net": {"_target_": "os.system", "command": "id"}}, "not on the list"),
        ({"net": {"_target_": "xray_pneumonia.data.datamodule.XRayDataModule"}}, "no net of this package"),
        ({"net": {}}, "no net of this package"),
        ({"net.width": 8}, "do not fit its net"),
        ({"net.width": 10**12}, "do not fit its net"),
        ({"net.depth": 2}, "72 such"),
        ({"net.depth": 0}, "model.depth=0"),
        ({"net.breadth": 1}, "model.breadth=1: unknown key"),
        ({"net.width": {"_target_": "builtins.open", "file": "canary"}}, "not on the list"),
    ],
)
def test_an_altered_card_is_refused(tmp_path, write_bundle, rewrite, changes, says):
    _, card = write_bundle(tmp_path)
    for key, value in changes.items():
        field, _, inner = key.partition(".")
        rewrite(tmp_path, **{field: card.net | {inner: value} if inner else value})
    with pytest.raises(InputError, match=says):
        load_bundle(tmp_path, name="it")


@pytest.mark.parametrize("damage", ["half", "nan", "more"])
def test_altered_weights_are_refused(tmp_path, write_bundle, rewrite, damage):
    write_bundle(tmp_path)
    rewrite(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    if damage == "more":
        weights["x"] = torch.zeros(1)
    else:
        name = "head.3.weight"
        weights[name] = weights[name].half() if damage == "half" else weights[name] * torch.nan
    save_file(weights, file)
    with pytest.raises(InputError, match=r"float16|no finite number|no place for x"):
        load_bundle(tmp_path, name="it")


def test_pretrained_nets_download_nothing(tmp_path, write_bundle, rewrite, monkeypatch):
    from torchvision import models

    write_bundle(tmp_path, model=("model=torchvision", "model.backbone=mobilenet_v3_small"))
    rewrite(tmp_path, net=json.loads((tmp_path / "model.json").read_text())["net"] | {"pretrained": True})
    real = models.get_model
    asked = []
    monkeypatch.setattr(models, "get_model", lambda name, weights: asked.append(weights) or real(name, weights=None))
    opened(tmp_path)
    assert asked == [None]


def test_an_ensemble_is_the_calibrated_mean_of_calibrated_logits(ensemble, films):
    folder, nets, cards = ensemble
    images = films(20)
    model = opened(folder)
    with torch.inference_mode():
        rows = [net(torch.from_numpy(images)[:, None]).double().numpy() for net in nets]
    mean = np.mean([row / card.temperature + card.bias for row, card in zip(rows, cards, strict=True)], axis=0)
    np.testing.assert_allclose(model.probabilities(images), 1 / (1 + np.exp(-(mean / 0.8 + 0.1))), atol=1e-6)
    assert model.gate is not None
    assert [path.name for path in folder.iterdir()] == ["ensemble.json"]


@pytest.mark.parametrize("damage", ["member", "outside", "size", "twice", "gone", "cut"])
def test_an_altered_ensemble_is_refused(tmp_path, ensemble, write_bundle, damage):
    path = ensemble[0] / "ensemble.json"
    values = json.loads(path.read_text())
    if damage == "member":
        write_bundle(tmp_path / "seed2", 9)
    if damage == "outside":
        values["members"][0]["name"] = "../all/../seed1"
    if damage == "size":
        values["card"]["image_size"] = 64
    if damage == "twice":
        values["members"] += values["members"][:1]
    if damage == "gone":
        (tmp_path / "seed3" / "model.json").unlink()
    path.write_text(json.dumps(values)[: 50 if damage == "cut" else None])
    with pytest.raises(InputError, match=r"seed|image size|no ensemble"):
        opened(ensemble[0])


@pytest.mark.slow
def test_a_folder_needs_no_mlflow(tmp_path, write_bundle):
    write_bundle(tmp_path / "one", gate=True)
    script = (
        "import sys; sys.modules['mlflow'] = None\n"
        "from pathlib import Path; import numpy as np\n"
        "from xray_pneumonia.workflows.find_model import find_and_load\n"
        "from xray_pneumonia.tracking.store import TrackingSettings\n"
        "facts = dict(uri=None, experiment_name='x', run_name=None, system_metrics=False, required=False)\n"
        "tracking = TrackingSettings(**facts)\n"
        "model = find_and_load('one', tracking=tracking, home=Path('nowhere'))\n"
        "print(len(model.decide(np.zeros((2, 32, 32), np.uint8))), sorted(m for m in sys.modules if m == 'mlflow'))\n"
        "assert sys.modules['mlflow'] is None and not Path('nowhere').exists()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("2 "), done.stderr
