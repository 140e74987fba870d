"""Engines and exported graphs: equal answers, what the file says of itself, what is refused."""

import json
import re
import shutil
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from xray_pneumonia.errors import InputError
from xray_pneumonia.inference import loading as opening
from xray_pneumonia.inference.engines import fold_batch_norms, in_batches, torch_engine
from xray_pneumonia.inference.loading import farthest, open_folder, open_reader, probes
from xray_pneumonia.inference.onnx import GRAPH, read_graph, write_graph

NETS = {
    "resnet": ("model=resnet", "model.width=16", "model.depth=1"),
    "per image": ("model=resnet", "model.width=16", "model.depth=1", "model.per_image=true"),
    "cnn": ("model=cnn", "model.filters=[16,16]", "model.activations=[relu,tanh]", "model.dense=8"),
    "mlp": ("model=mlp",),
    "mobilenet": ("model=torchvision", "model.backbone=mobilenet_v3_small"),
}


@pytest.fixture(params=NETS)
def bundle(request, tmp_path, write_bundle):
    write_bundle(tmp_path / "bundle", model=NETS[request.param])
    return open_folder(tmp_path / "bundle", name="it")


def test_all_engines_give_equal_answers_at_the_edges(bundle, tmp_path, films):
    images = np.concatenate([probes(32), films(40)])
    with torch.inference_mode():
        expected = bundle.answer(torch.from_numpy(images)[:, None]).numpy()
        folded = fold_batch_norms(bundle.answer)(torch.from_numpy(images)[:, None]).numpy()
    write_graph(bundle, tmp_path / GRAPH)
    card, graph = read_graph(tmp_path / GRAPH)
    assert card == bundle.card
    scale = np.abs(expected).max()
    for logits in (folded, torch_engine(bundle.answer)(images), graph(images), graph(images[:1])):
        np.testing.assert_allclose(logits, expected[: len(logits)], atol=3e-5 * scale)
    assert farthest(torch_engine(bundle.answer), graph, images) < 1e-5


def test_no_batch_norm_is_left_behind_a_convolution(tmp_path, write_bundle):
    write_bundle(tmp_path, model=NETS["resnet"])
    bundle = open_folder(tmp_path, name="it")
    kinds = [type(module) for module in fold_batch_norms(bundle.net).modules()]
    assert torch.nn.BatchNorm2d not in kinds
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in bundle.net.modules())


def test_batches_cover_everything_in_order():
    engine = in_batches(lambda batch: batch[:, 0, 0].astype(float), 4)
    images = np.arange(11, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    assert engine(images).tolist() == list(range(11))
    assert engine(images[:0]).tolist() == []


def test_an_ensemble_becomes_one_graph(ensemble, tmp_path, films):
    bundle = open_folder(ensemble[0], name="it")
    write_graph(bundle, tmp_path / GRAPH)
    card, graph = read_graph(tmp_path / GRAPH)
    assert card == bundle.card
    assert farthest(torch_engine(bundle.answer), graph, films(20)) < 1e-5


def test_the_file_says_what_its_answers_mean_and_nothing_of_this_machine(exported):
    import onnx

    folder, card = exported
    model = onnx.load(folder / GRAPH)
    onnx.checker.check_model(model, full_check=True)
    known = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(known["labels"]) == ["NORMAL", "PNEUMONIA"]
    assert (known["image_size"], known["operating_point"], known["band"]) == ("32", "0.5", "[0.4, 0.6]")
    assert json.loads(known["card"])["temperature"] == card.temperature
    batch, *shape = model.graph.input[0].type.tensor_type.shape.dim
    assert batch.dim_param
    assert [one.dim_value for one in shape] == [1, 32, 32]
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert not re.search(rb"\.py\b|/home/|site-packages", (folder / GRAPH).read_bytes())


def test_the_graph_alone_answers_with_label_and_abstention(exported, films):
    folder, _ = exported
    alone, whole = (open_reader(place, name="it", engine="auto") for place in (folder / GRAPH, folder))
    weights = open_reader(folder, name="it", engine="torch")
    assert alone.net is None
    for reader in (alone, whole):
        table, expected = reader.read(films(20)), weights.read(films(20))
        np.testing.assert_allclose(table.pop("probability"), expected.pop("probability"), atol=1e-6)
        assert table.equals(expected)


@pytest.fixture(scope="session")
def exported_once(tmp_path_factory, write_bundle):
    folder = tmp_path_factory.mktemp("exported")
    _, card = write_bundle(folder, gate=True)
    write_graph(open_folder(folder, name="it"), folder / GRAPH)
    return folder, card


@pytest.fixture
def exported(exported_once, tmp_path):
    """A bundle with its graph, to be altered."""
    return shutil.copytree(exported_once[0], tmp_path / "exported"), exported_once[1]


@pytest.fixture
def graphs_read(monkeypatch):
    """Watch which graphs are read."""
    seen = []
    monkeypatch.setattr(opening, "read_graph", lambda path: seen.append(path) or read_graph(path))
    return seen


def test_auto_takes_the_graph_beside_the_weights(exported, films, graphs_read):
    folder, _ = exported
    fast = open_reader(folder, name="it", engine="auto")
    assert graphs_read == [folder / GRAPH]
    plain = open_reader(folder, name="it", engine="torch")
    np.testing.assert_allclose(fast(films(40)), plain(films(40)), atol=1e-6)
    (folder / GRAPH).unlink()
    open_reader(folder, name="it", engine="auto")
    assert len(graphs_read) == 1


def test_an_ensemble_takes_the_graphs_beside_its_members(ensemble, films, graphs_read):
    folder = ensemble[0]
    plain = open_reader(folder, name="it", engine="auto")
    for member in ("seed1", "seed2"):
        write_graph(open_folder(folder.parent / member, name=member), folder.parent / member / GRAPH)
    open_reader(folder, name="it", engine="auto")
    graphs_read.clear()
    write_graph(open_folder(folder.parent / "seed3", name="seed3"), folder.parent / "seed3" / GRAPH)
    fast = open_reader(folder, name="it", engine="auto")
    assert len(graphs_read) == 3
    np.testing.assert_allclose(fast(films(40)), plain(films(40)), atol=1e-6)


def test_onnx_makes_the_graph_where_there_is_none(tmp_path, write_bundle, films, graphs_read):
    write_bundle(tmp_path)
    reader = open_reader(tmp_path, name="it", engine="onnx")
    assert len(graphs_read) == 1
    np.testing.assert_allclose(reader(films(9)), open_reader(tmp_path, name="it", engine="torch")(films(9)), atol=1e-6)


def test_a_graph_that_gives_other_answers_is_never_used(tmp_path, write_bundle, films, caplog):
    write_bundle(tmp_path / "honest")
    write_bundle(tmp_path / "other", 5)
    honest, other = (open_folder(tmp_path / name, name=name) for name in ("honest", "other"))
    write_graph(replace(honest, answer=other.answer), tmp_path / "honest" / GRAPH)  # another's answers, its own card
    expected = open_reader(tmp_path / "honest", name="it", engine="torch")(films(9))
    assert open_reader(tmp_path / "honest", name="it", engine="auto")(films(9)).tolist() == expected.tolist()
    assert "off its weights" in caplog.text
    with pytest.raises(InputError, match="off its weights"):
        open_reader(tmp_path / "honest", name="it", engine="onnx")
    write_graph(other, tmp_path / "honest" / GRAPH)
    assert open_reader(tmp_path / "honest", name="it", engine="auto")(films(9)).tolist() == expected.tolist()
    assert "another model" in caplog.text


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named(exported, monkeypatch, films, package):
    folder, _ = exported
    monkeypatch.setitem(sys.modules, package, None)
    assert len(open_reader(folder, name="it", engine="auto")(films(2))) == 2
    (folder / GRAPH).rename(folder / "alone.onnx")
    with pytest.raises(InputError, match=rf"{package} is not installed.*xray-pneumonia\[onnx\]"):
        open_reader(folder, name="it", engine="onnx")
    if package == "onnxruntime":
        with pytest.raises(InputError, match=r"xray-pneumonia\[onnx\]"):
            open_reader(folder / "alone.onnx", name="it", engine="auto")


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
        open_reader(path, name="it", engine="auto")
    with pytest.raises(InputError, match="engine=torch"):
        open_reader(path, name="it", engine="torch")
