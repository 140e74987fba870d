"""Bundles, ensembles and gates as somebody who means harm would write them: refused in one line, before they act."""

import io
import json
import os
import re
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from xray_pneumonia.errors import InputError
from xray_pneumonia.inference import bundle as bundles
from xray_pneumonia.inference import loading
from xray_pneumonia.inference.bundle import GATE
from xray_pneumonia.inference.loading import load_bundle, load_model
from xray_pneumonia.inference.onnx import GRAPH
from xray_pneumonia.workflows.training_record import read_record

PARTS = ("model.json", "model.safetensors", GATE)


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "foreign code ran"


@pytest.fixture(scope="module")
def honest(tmp_path_factory, write_bundle):
    folder = tmp_path_factory.mktemp("honest")
    write_bundle(folder, gate=True)
    load_bundle(folder, name="it")
    return folder


@pytest.fixture
def folder(tmp_path, honest):
    return shutil.copytree(honest, tmp_path / "bundle")


def refused(place, *words):
    with pytest.raises(InputError) as caught:
        load_model(place, name="it")
    message = str(caught.value)
    assert len(message) < 2000
    assert all(word in message for word in words), message


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "itself", "outside", "huge"])
def test_files_that_are_none_are_never_opened(folder, tmp_path, part, kind):
    """A pipe would be waited for, a device read for ever, a link lead to whatever its maker likes."""
    path = folder / part
    path.rename(tmp_path / part)
    {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
        "itself": lambda: path.symlink_to(path),
        "outside": lambda: path.symlink_to(tmp_path / part),
        "huge": lambda: (path.touch(), os.truncate(path, 2**40)),  # takes no room
    }[kind]()
    if (part, kind) == (GATE, "itself"):
        return  # as if there were none
    refused(folder, part)


def test_a_member_that_is_a_link_is_not_followed(ensemble, tmp_path):
    (tmp_path / "seed2").rename(tmp_path / "elsewhere")
    (tmp_path / "seed2").symlink_to(tmp_path / "elsewhere")
    refused(ensemble[0], "seed2", "is a link")


def test_a_graph_that_is_a_link_is_not_followed(folder, tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "any").write_bytes(b"x")
    (folder / GRAPH).symlink_to(tmp_path / "any")
    refused(folder / GRAPH, GRAPH, "link")


@pytest.mark.parametrize("part", ["config.yaml", "history.csv", "environment.json"])
def test_evidence_that_is_a_pipe_or_a_link_is_not_read(folder, tmp_path, part):
    for name in ("config.yaml", "history.csv", "environment.json"):
        (folder / name).write_text('{"a": 1}' if name != "history.csv" else "metric,epoch,value\n")
    (folder / part).unlink()
    (tmp_path / "elsewhere").write_text("a: 1\n")
    (folder / part).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError):
        read_record(folder)
    (folder / part).unlink()
    os.mkfifo(folder / part)
    with pytest.raises(InputError):
        read_record(folder)


HOSTILE = {
    "temperature": [0, -1, float("nan"), float("inf"), 10**400, True, "1", None, [], {"a": 1}],
    "bias": [float("nan"), float("-inf"), 10**400, "0"],
    "operating_point": [-0.1, 1.1, float("nan"), None],
    "band": [5, None, "ab", [0.1], [0.9, 0.1], [{}, {}], [0.1, float("nan")], [[], []]],
    "image_size": [0, -32, 32.5, 2**40, 10**400, "32", True],
    "class_names": ["NORMAL", ["NORMAL"], ["NORMAL", "PNEUMONIA", "x"], [1, 2], {"NORMAL": 0}],
    "versions": [[], {"torch": 1}],
    "evidence": [{"val/auroc": "high"}, [1]],
    "run_id": [7, None, ["x"]],
    "weights_sha256": ["0" * 64, 7, "../../etc/passwd"],
    "schema": [2, "1", None, [], 10**400],
    "__class__": ["x"],
    "\x1b]0;owned\x07": [1],
    "x" * 100_000: [1],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in HOSTILE.items() for value in values])
def test_hostile_values_in_a_card(folder, field, value):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    refused(folder)


@pytest.mark.parametrize("key", ["depth", "stages", "width"])
@pytest.mark.parametrize("number", [10**5, 10**9, 10**30])
def test_a_net_without_an_end_is_never_made(folder, rewrite, key, number):
    net = json.loads((folder / "model.json").read_text())["net"]
    rewrite(folder, net=net | {key: number})
    refused(folder, str(folder))


def test_a_traceback_of_c_inside_an_error_of_torch_is_not_shown_whole(folder, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("empty(): overflow\n" + "\n".join(f"frame #{number}: c10::Error" for number in range(500)))

    monkeypatch.setattr(loading, "build", fail)
    refused(folder, "do not fit its net", "empty(): overflow")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"members": [], "card": ' + "[" * 100_000, "null", "[]", "{}", "7"])
def test_an_ensemble_that_describes_none(ensemble, text):
    (ensemble[0] / "ensemble.json").write_text(text)
    refused(ensemble[0], "ensemble.json")


@pytest.mark.parametrize(
    "name", ["/etc", "../bundle", "..", ".", "", "a/b", "x\0y", "n" * 300, 7, None, ["seed1"], {"a": 1}]
)
def test_members_elsewhere(ensemble, name):
    path = ensemble[0] / "ensemble.json"
    values = json.loads(path.read_text())
    values["members"][0]["name"] = name
    path.write_text(json.dumps(values))
    refused(ensemble[0])


def test_a_million_members_are_not_opened_one_by_one(ensemble, monkeypatch):
    path = ensemble[0] / "ensemble.json"
    values = json.loads(path.read_text())
    values["members"] = values["members"][:1] * 9_000
    path.write_text(json.dumps(values))
    monkeypatch.setattr("xray_pneumonia.inference.loading.load_bundle", lambda *_, **__: pytest.fail("opened"))
    refused(ensemble[0], "9000")


class Touch:
    """What a malicious pickle does."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def packed(arrays, compression=zipfile.ZIP_STORED):
    """Pack arrays, or raw bytes of .npy files, as a .npz."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name, content in arrays.items():
            if not isinstance(content, bytes):
                file = io.BytesIO()
                np.save(file, content, allow_pickle=True)
                content = file.getvalue()
            archive.writestr(f"{name}.npy", content)
    return made.getvalue()


def header(shape, dtype="<f8"):
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def hostile_gates(whole, canary):
    pickled = np.array([Touch(canary)], dtype=object)
    first = io.BytesIO()
    np.save(first, whole["mean"])
    return {
        "empty": b"",
        "text": b"no gate",
        "cut": packed(whole)[:-200],
        "begins like a ZIP": b"PK\x03\x04" + b"x" * 100,
        "one array": first.getvalue(),
        "a pickle": b"\x80\x04cposix\nsystem\n.",
        "pickled arrays": packed(whole | {"mean": pickled}),
        "code in a header": packed(whole | {"mean": header((1,)).replace(b"'<f8'", b"id(1)")}),
        "a bomb": packed(whole | {"mean": np.zeros(2**23)}, zipfile.ZIP_DEFLATED),
        "a shape without an end": packed(whole | {"mean": header((2**50,))}),
        "a negative shape": packed(whole | {"mean": header((-1,))}),
        "another shape": packed(whole | {"axes": whole["axes"][:, :-1]}),
        "text instead of numbers": packed(whole | {"noise": np.array(["x"])}),
        "no number": packed(whole | {"limits": whole["limits"] * np.nan}),
        "limits that pass all": packed(whole | {"limits": np.array([np.inf, np.inf])}),
        "limits that turn it around": packed(whole | {"limits": -whole["limits"]}),
        "a part is missing": packed({name: array for name, array in whole.items() if name != "noise"}),
    }


def test_hostile_gates_are_refused(folder, canary):
    with np.load(folder / GATE, allow_pickle=False) as arrays:
        whole = dict(arrays)
    for content in hostile_gates(whole, canary).values():
        (folder / GATE).write_bytes(content)
        refused(folder, GATE)
    (folder / GATE).write_bytes(packed(whole))
    assert load_model(folder, name="it").gate is not None


def test_hostile_gates_of_features_are_refused(folder, write_bundle):
    write_bundle(folder, gate="features")
    with np.load(folder / GATE, allow_pickle=False) as arrays:
        whole = dict(arrays)
    home = {"home_scores": np.zeros((2, 101)), "home_counts": np.ones(2)} | dict.fromkeys(
        ("home_brightness", "home_side"), np.ones(3)
    )
    answers = home | {"home_evidence": np.zeros((2, 101)), "home_truth": np.ones(2)}
    for changes in (
        {"whitening": whole["whitening"][:-1]},
        {"whitening": whole["whitening"] * np.float32(np.nan)},
        {"centre": np.empty(0), "whitening": np.empty(0, np.float32)},  # an ensemble's
        {"limits": np.array([-1.0, 1.0])},
        home | {"home_scores": np.arange(202.0)[::-1].reshape(2, 101)},
        home | {"home_counts": np.zeros(2)},
        home | {"home_side": np.ones(4)},
        home | {"home_evidence": np.zeros((2, 101))},
        answers | {"home_evidence": np.zeros(101)},
        answers | {"home_evidence": np.full((2, 101), np.nan)},
        answers | {"home_evidence": np.arange(202.0)[::-1].reshape(2, 101)},
        answers | {"home_truth": np.array([1.0, 1e12])},
    ):
        (folder / GATE).write_bytes(packed(whole | changes))
        refused(folder, GATE)
    for known in (home, answers):
        (folder / GATE).write_bytes(packed(whole | known))
        assert (load_model(folder, name="it").gate.home.evidence is None) is (known is home)


def test_weights_of_a_kind_torch_does_not_know(folder):
    for kind in ("F4", "F6_E2M3", "X", "C64"):
        text = json.dumps({"a": {"dtype": kind, "shape": [2], "data_offsets": [0, 16]}}).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 16)
        refused(folder)


def test_a_card_cannot_write_to_the_terminal(xray, folder, tmp_path):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"\x1b]0;owned\x07\x9b2J": 1}))
    outcome = xray("predict", f"model={folder}", "input=.", "output=/dev/null/out")
    assert outcome.code == 2
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", outcome.err)
    assert "x1b" in outcome.err


def test_nothing_is_larger_than_its_limit(folder, monkeypatch):
    monkeypatch.setattr(bundles, "MAX_CARD_BYTES", 10)
    refused(folder, "at most 10")


@pytest.mark.skipif(sys.platform != "linux", reason="the environment of a process, as Linux shows it")
def test_a_link_to_the_environment_says_nothing_of_it(folder, monkeypatch):
    (folder / "model.json").unlink()
    (folder / "model.json").symlink_to("/proc/self/environ")
    refused(folder, "link")
