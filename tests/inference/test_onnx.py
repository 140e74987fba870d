"""Exported graphs: equal answers, what the file says of itself, what is refused."""

import json
import re
import runpy
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xray_pneumonia.data.images.decode import decode
from xray_pneumonia.errors import AnswersDiffer, InputError
from xray_pneumonia.evaluation.input_gate import read_gate
from xray_pneumonia.inference.bundle import GATE
from xray_pneumonia.inference.loading import load_model
from xray_pneumonia.inference.model import TrainedModel, in_batches
from xray_pneumonia.inference.onnx import GRAPH, read_graph, write_graph
from xray_pneumonia.workflows.export import extreme_images, require_equal

NETS = {
    "resnet": ("model=resnet", "model.width=16", "model.depth=1"),
    "per image": ("model=resnet", "model.width=16", "model.depth=1", "model.per_image=true"),
    "cnn": ("model=cnn", "model.filters=[16,16]", "model.activations=[relu,tanh]", "model.dense=8"),
    "mlp": ("model=mlp",),
    "mobilenet": ("model=torchvision", "model.backbone=mobilenet_v3_small"),
}


@pytest.mark.parametrize("net", NETS)
def test_a_graph_gives_equal_answers_for_extreme_images_too(tmp_path, write_bundle, films, net):
    net, known = write_bundle(tmp_path / "bundle", model=NETS[net])
    model = load_model(tmp_path / "bundle", name="it")
    images = np.concatenate([extreme_images(32), films(40)])
    with torch.inference_mode():
        raw = net(torch.from_numpy(images)[:, None]).double().numpy()
    expected = raw / known.temperature + known.bias
    write_graph(model, tmp_path / GRAPH)
    card, graph, _ = read_graph(tmp_path / GRAPH)
    assert card == model.card
    scale = np.abs(expected).max()
    for logits in (model.logits(images), graph(images)[:, 0], graph(images[:1])[:, 0]):
        np.testing.assert_allclose(logits, expected[: len(logits)], atol=3e-5 * scale)
    alone = TrainedModel("it", card, graph=graph)
    np.testing.assert_allclose(alone.probabilities(images), model.probabilities(images), atol=1e-5)


def test_plain_onnxruntime_gives_the_same_answers_to_files(tmp_path, write_bundle, xrays):
    """The example of docs/deployment.md, on gray and colour JPEG and on PNG."""
    path = Path(__file__).parents[2] / "docs" / "examples" / "answer_with_onnxruntime.py"
    assert sum(bool(line.strip()) for line in path.read_text().splitlines()) <= 20
    example = runpy.run_path(str(path))
    films = sorted((xrays / "train" / "PNEUMONIA").iterdir())[:8]
    Image.open(films[0]).save(tmp_path / "film.png")
    films.append(tmp_path / "film.png")
    pixels = np.stack([decode(film.read_bytes(), 32).pixels for film in films])
    net, _ = write_bundle(tmp_path / "fresh", model=NETS["mlp"])
    with torch.inference_mode():
        raw = net(torch.from_numpy(pixels)[:, None]).double().numpy()
    spread = {"temperature": float(raw.std()), "bias": float(-raw.mean() / raw.std())}  # so that pixels matter
    write_bundle(tmp_path / "bundle", model=NETS["mlp"], **spread)
    model = load_model(tmp_path / "bundle", name="it")
    write_graph(model, tmp_path / GRAPH)
    probabilities, labels = zip(*(example["answer"](tmp_path / GRAPH, film) for film in films), strict=True)
    np.testing.assert_allclose(probabilities, model.probabilities(pixels), atol=1e-3)
    assert list(labels) == model.decide(pixels)["label"].tolist()
    assert len({*labels}) == 2


def test_batches_cover_everything_in_order():
    images = np.arange(11, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    sizes = []

    def run(batch):
        sizes.append(len(batch))
        return batch[:, 0, 0].astype(float)

    assert in_batches(run, images, 4).tolist() == list(range(11))
    assert sizes == [4, 4, 3]
    assert in_batches(run, images[:0], 4).tolist() == []


def test_an_ensemble_becomes_one_graph(ensemble, tmp_path, films):
    model = load_model(ensemble[0], name="it")
    write_graph(model, tmp_path / GRAPH)
    card, graph, _ = read_graph(tmp_path / GRAPH)
    assert card == model.card
    np.testing.assert_allclose(graph(films(20))[:, 0], model.logits(films(20)), atol=1e-5)


def test_the_file_says_what_its_answers_mean_and_nothing_of_this_machine(exported):
    import onnx

    folder, card = exported
    model = onnx.load(folder / GRAPH)
    onnx.checker.check_model(model, full_check=True)
    known = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(known["labels"]) == ["NORMAL", "PNEUMONIA"]
    assert (
        "Image.draft(mode, (64, 64)), then Image.resize((32, 32), Image.Resampling.BILINEAR)" in known["preprocessing"]
    )
    assert (known["image_size"], known["operating_point"], known["band"]) == ("32", "0.5", "[0.4, 0.6]")
    assert json.loads(known["card"])["temperature"] == card.temperature
    assert json.loads(known["gate"]) == {"output": "distance", "limit": read_gate(folder / GATE).limits[0]}
    batch, *shape = model.graph.input[0].type.tensor_type.shape.dim
    assert batch.dim_param
    assert [one.dim_value for one in shape] == [1, 32, 32]
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert not re.search(rb"\.py\b|/home/|site-packages", (folder / GRAPH).read_bytes())


def test_the_graph_alone_answers_with_label_and_abstention(exported, films):
    folder, _ = exported
    weights, alone = load_model(folder, name="it"), load_model(folder / GRAPH, name="it")
    assert alone.net is None
    table, expected = alone.decide(films(20)), weights.decide(films(20))
    np.testing.assert_allclose(table.pop("probability"), expected.pop("probability"), atol=1e-6)
    np.testing.assert_allclose(table.pop("gate"), expected.pop("gate"), rtol=1e-4)
    assert table.equals(expected)
    assert require_equal(weights, folder / GRAPH, films(20)) < 1e-5
    other = replace(weights, gate=replace(weights.gate, centre=weights.gate.centre + 1))
    with pytest.raises(AnswersDiffer, match="gate scores differ"):
        require_equal(other, folder / GRAPH, films(20))


def test_a_graph_without_distances_does_not_pass_for_one_with(exported, monkeypatch):
    path = exported[0] / GRAPH
    monkeypatch.setattr("xray_pneumonia.inference.loading.read_graph", lambda path: (*read_graph(path)[:2], False))
    with pytest.raises(InputError, match="gives no distances"):
        load_model(path, name="it")


@pytest.fixture(scope="session")
def exported_once(tmp_path_factory, write_bundle):
    folder = tmp_path_factory.mktemp("exported")
    _, card = write_bundle(folder, gate="features")
    write_graph(load_model(folder, name="it"), folder / GRAPH)
    return folder, card


@pytest.fixture
def exported(exported_once, tmp_path):
    """A bundle with its graph, to be altered."""
    return shutil.copytree(exported_once[0], tmp_path / "exported"), exported_once[1]


def test_onnx_computes_with_a_graph_of_these_weights_whatever_lies_next_to_them(exported, films, monkeypatch):
    folder, _ = exported
    (folder / GRAPH).write_bytes(b"another model's graph")
    expected = load_model(folder, name="it").probabilities(films(9))
    model = load_model(folder, name="it", engine="onnx")
    monkeypatch.setattr(model.net, "forward", lambda *_: pytest.fail("torch computes"))
    np.testing.assert_allclose(model.probabilities(films(9)), expected, atol=1e-6)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named(exported, monkeypatch, films, package):
    folder, _ = exported
    monkeypatch.setitem(sys.modules, package, None)
    assert len(load_model(folder, name="it").probabilities(films(2))) == 2
    with pytest.raises(InputError, match=rf"{package} is not installed.*xray-pneumonia\[onnx\]"):
        load_model(folder, name="it", engine="onnx")
    if package == "onnxruntime":
        with pytest.raises(InputError, match=r"xray-pneumonia\[onnx\]"):
            load_model(folder / GRAPH, name="it")


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "no card", "other card", "classes", "size", "outside"])
def test_a_damaged_graph_is_refused(exported, damage):
    import onnx

    folder, card = exported
    path = folder / GRAPH
    model = onnx.load(path)
    changes = {"no card": None, "other card": {"schema": 7}, "classes": {"class_names": ["A", "B"]}}
    changes["size"] = {"image_size": 64}
    entry = next(one for one in model.metadata_props if one.key == "card")
    if damage in changes:
        entry.value = json.dumps(asdict(card) | changes[damage]) if changes[damage] else "[]"
    if damage == "outside":  # weights in another file
        (folder / "secret").write_bytes(b"x" * 10_000)
        weight = model.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="secret")
    data = model.SerializeToString()
    path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "text": b"no graph"}.get(damage, data))
    with pytest.raises(InputError, match=re.escape(str(path))):
        load_model(path, name="it")
    with pytest.raises(InputError, match="engine=torch"):
        load_model(path, name="it", engine="torch")
