"""Exported graphs are programs of somebody else: what they cost is bounded (kind B)."""

import json
import time
from dataclasses import asdict

import numpy as np
import pytest

from xray_pneumonia.errors import InputError
from xray_pneumonia.inference import graph_process
from xray_pneumonia.inference.bundle import Card
from xray_pneumonia.inference.loading import load_model

CARD = Card(
    net={},
    class_names=["NORMAL", "PNEUMONIA"],
    image_size=32,
    temperature=1.0,
    operating_point=0.5,
    operating_point_policy="fixed",
    records_fingerprint="",
    run_id="",
    versions={},
)


@pytest.fixture
def graph(tmp_path):
    """Write a graph of the right shapes whose answer rests on a loop, or on a tensor of so many values."""
    onnx = pytest.importorskip("onnx")
    from onnx.helper import make_graph, make_model, make_node, make_tensor, make_tensor_value_info

    def value(name, kind, shape):
        return make_tensor_value_info(name, kind, shape)

    def write(*, rounds=1, values=1):
        types = onnx.TensorProto
        body = make_graph(
            [make_node("Identity", ["go"], ["more"]), make_node("Add", ["sum", "sum"], ["next"])],
            "body",
            [value("round", types.INT64, []), value("go", types.BOOL, []), value("sum", types.DOUBLE, ["batch"])],
            [value("more", types.BOOL, []), value("next", types.DOUBLE, ["batch"])],
        )
        nodes = [
            make_node("Cast", ["pixels"], ["real"], to=types.DOUBLE),
            make_node("ReduceMean", ["real", "axes"], ["mean"], keepdims=0),
            make_node("Loop", ["rounds", "true", "mean"], ["looped"], body=body),
            make_node("ConstantOfShape", ["values"], ["large"], value=make_tensor("", types.DOUBLE, [1], [0.0])),
            make_node("ReduceSum", ["large"], ["zero"], keepdims=0),
            make_node("Add", ["looped", "zero"], ["logit"]),
            make_node("Sigmoid", ["logit"], ["probability"]),
        ]
        constants = [
            make_tensor("axes", types.INT64, [3], [1, 2, 3]),
            make_tensor("rounds", types.INT64, [], [rounds]),
            make_tensor("true", types.BOOL, [], [True]),
            make_tensor("values", types.INT64, [1], [values]),
        ]
        outputs = [value(name, types.DOUBLE, ["batch"]) for name in ("probability", "logit")]
        pixels = value("pixels", types.UINT8, ["batch", 1, 32, 32])
        model = make_model(make_graph(nodes, "it", [pixels], outputs, constants), ir_version=10)
        model.opset_import[0].version = 18
        for key, told in {"card": asdict(CARD), "labels": CARD.class_names}.items():
            model.metadata_props.add(key=key, value=json.dumps(told))
        onnx.save(model, tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    return write


def test_a_graph_within_the_limits_answers(graph):
    model = load_model(graph(rounds=3), name="it")
    assert model.logits(np.full((20, 32, 32), 2, np.uint8)).tolist() == [16.0] * 20


def test_a_graph_that_does_not_end_is_refused(graph, monkeypatch):
    monkeypatch.setattr(graph_process, "LOAD_SECONDS", 2.0)
    monkeypatch.setattr(graph_process, "IMAGE_SECONDS", 1.0)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"model\.onnx: takes more than . s"):
        load_model(graph(rounds=2**62), name="it")
    assert time.monotonic() - start < 30


def test_a_graph_that_fills_the_memory_is_refused(graph):
    with pytest.raises(InputError, match=r"model\.onnx: (cannot be read|ended its process)"):
        load_model(graph(values=2**31), name="it")
