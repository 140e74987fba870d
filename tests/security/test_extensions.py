"""Stored runs, bundles and experiment files that name code: none of it is imported, run or confused with the user's."""

import json
import sys

import pytest
import torch
import yaml
from safetensors.torch import save_file

from xray_pneumonia import extensions
from xray_pneumonia.config import build
from xray_pneumonia.errors import InputError
from xray_pneumonia.inference.loading import load_model
from xray_pneumonia.stored_config import check_experiment, check_net, load_stored

CANARY = "open(__file__ + '.ran', 'a').close()\n"
MINE = "from os import system\nimport os\nclass Net: pass\nclass _Hidden: pass\nWIDTH = 3\n"
ZERO = "0" * 64


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a module of the user's, which the command names, and others, which it does not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pack").mkdir()
    for name in ("evil", "my_mode1s", "my_modelsx", "pack/__init__", "pack/inner", "sitecustom", "m\u0443_models"):
        (tmp_path / f"{name}.py").write_text(CANARY)
    (tmp_path / "my_models.py").write_text(MINE)
    extensions.load(["my_models"])
    before = set(sys.modules)
    yield tmp_path
    extensions.load([])
    assert not [*tmp_path.rglob("*.ran")], "foreign code ran"
    assert not [name for name in set(sys.modules) - before if name.split(".")[0] in {"evil", "pack", "my_mode1s"}]


@pytest.fixture
def bundle(tmp_path):
    """A bundle whose card says: `change(net=..., extensions=...)`."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
    card = {
        "class_names": ["NORMAL", "PNEUMONIA"], "image_size": 32, "temperature": 1.0, "operating_point": 0.5,
        "operating_point_policy": "fixed at 0.5", "records_fingerprint": "", "run_id": "0" * 32, "versions": {},
    }  # fmt: skip

    def change(**values):
        (folder / "model.json").write_text(json.dumps(card | values))
        return folder

    return change


def model(target, **names):
    return {"model": {"_target_": target}, "extensions": names}


MINE_SHA = {"my_models": "SHA"}
STORED = {
    "a module": model("evil.Net", evil=ZERO),
    "a module that it does not list": model("evil.Net"),
    "a module beside the user's": model("evil.Net", evil=ZERO, **MINE_SHA),
    "only a name": {"extensions": {"evil": ZERO}},
    "a list": {"extensions": ["evil"]},
    "a text": {"extensions": "evil"},
    "a list in a mapping": {"extensions": {"evil": ["evil"]}},
    "a file": {"extensions": {"evil.py": ZERO}},
    "a path": {"extensions": {"./evil": ZERO}},
    "an absolute path": {"extensions": {"/tmp/evil": ZERO}},
    "a parent": {"extensions": {"..evil": ZERO}},
    "a package": model("pack.inner.Net", pack=ZERO),
    "a module below the user's": model("my_models.evil.Net", **MINE_SHA),
    "a look-alike": model("my_mode1s.Net", my_mode1s=ZERO),
    "a longer name": model("my_modelsx.Net", **MINE_SHA),
    "a name in Cyrillic": model("m\u0443_models.Net", **{"m\u0443_models": ZERO}),
    "a changed source": model("my_models.Net", my_models=ZERO),
    "the user's, unlisted": model("my_models.Net"),
    "what the user imports": model("my_models.system", **MINE_SHA),
    "through what the user imports": model("my_models.os.system", **MINE_SHA),
    "a hidden class": model("my_models._Hidden", **MINE_SHA),
    "no class": model("my_models.WIDTH", **MINE_SHA),
    "a method": model("my_models.Net.__init__", **MINE_SHA),
    "where no code of others stands": {"data": {"_target_": "my_models.Net"}, "extensions": MINE_SHA},
    "in a callback": {"callbacks": [{"_target_": "evil.Callback"}], "extensions": {}},
    "in a transform": {"augmentation": {"transforms": [{"_target_": "evil.Noise"}]}, "extensions": {}},
    "a name of a thousand letters": {"extensions": {"e" * 1000: ZERO}},
    "a thousand names": {"extensions": {f"evil{number}": ZERO for number in range(1000)}},
    "an interpolation": {"extensions": {"my_models": "${oc.env:HOME}"}},
}


@pytest.mark.parametrize("case", STORED)
def test_a_stored_config_imports_nothing(here, case):
    text = yaml.safe_dump(STORED[case], allow_unicode=True).replace("SHA", extensions.load(["my_models"])["my_models"])
    with pytest.raises(InputError):
        load_stored(text, origin="run_id=abc")


def test_the_same_with_the_users_own_is_read(here):
    text = yaml.safe_dump(model("my_models.Net", **extensions.load(["my_models"])))
    assert load_stored(text, origin="x").model._target_ == "my_models.Net"


NETS = ("evil.Net", "pack.inner.Net", "my_models.os.system", "my_models._Hidden", "my_mode1s.Net")


@pytest.mark.parametrize("target", NETS)
@pytest.mark.parametrize("names", [{}, {"evil": ZERO}, {"my_models": ZERO}, {"/tmp/evil.py": ZERO}])
def test_a_bundle_imports_nothing(here, bundle, target, names):
    with pytest.raises(InputError):
        load_model(bundle(net={"_target_": target}, extensions=names), name="it")
    with pytest.raises(InputError):
        check_net({"_target_": target}, origin="it")


def test_a_graph_that_is_not_the_bundles(here, bundle):
    folder = bundle(net={"_target_": "evil.Net"}, extensions={"evil": ZERO})
    (folder / "model.onnx").write_bytes(b"none")
    with pytest.raises(InputError, match=r"model\.onnx"):
        load_model(folder, name="it")


@pytest.mark.parametrize(
    "text", ["extensions: [evil]\n", "model: {_target_: evil.Net}\n", "defaults: [{override /model: ../evil}]\n"]
)
def test_an_experiment_file_imports_nothing(here, text):
    with pytest.raises(InputError):
        check_experiment(text.encode(), origin="experiment=x.yaml")


def test_nothing_is_built_that_the_command_does_not_name(here):
    for target in ("evil.Net", "my_models.os.system", "my_models.Net"):
        with pytest.raises(InputError, match="not on the list"):
            build({"_target_": target}, key="data" if target == "my_models.Net" else "model")


def test_a_file_of_a_librarys_name_replaces_none(here):
    (here / "yaml.py").write_text(CANARY)
    with pytest.raises(InputError, match="two modules are called yaml"):
        extensions.load(["yaml"])
    extensions.load(["my_models"])
    assert sys.path.index(str(here)) == len(sys.path) - 1


def test_choices_of_a_folder_that_the_command_names_are_the_users(here):
    (here / "model").mkdir()
    (here / "model" / "mine.yaml").write_text("")
    text = b"defaults: [{override /model: mine}, {override /loss: null}]\n"
    check_experiment(text, origin="x", folders=[here])
    with pytest.raises(InputError, match="names no choice"):
        check_experiment(text, origin="x")
