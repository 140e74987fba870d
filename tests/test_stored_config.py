"""Stored configs are untrusted input: each attack, and a canary file that must not appear."""

import hashlib
import logging
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from xray_pneumonia import stored_config
from xray_pneumonia.config import TARGETS, build, check, plain
from xray_pneumonia.errors import InputError
from xray_pneumonia.stored_config import MAX_BYTES, SCHEMA, check_net, load_stored, stored_text
from xray_pneumonia.workflows.train import TrainConfig


@pytest.fixture(scope="module")
def cfg():
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        composed = compose("train", ["data=synthetic", "model=cnn", "loss.class_weights={NORMAL: 3, PNEUMONIA: 1}"])
    for key in ("sweep", "workers", "resume"):
        OmegaConf.set_struct(composed, False)
        composed.pop(key)
    return composed


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "foreign code ran"


def refused(text, *words):
    with pytest.raises(InputError) as caught:
        load_stored(text, origin="run_id=abc")
    assert str(caught.value).startswith("run_id=abc: ")
    for word in words:
        assert word in str(caught.value), caught.value


def test_what_is_stored_reads_back_as_it_was_and_passes_the_same_check(cfg):
    text = stored_text(cfg)
    digest = hashlib.sha256(text.encode()).hexdigest()
    read = load_stored(text, origin="run_id=abc", sha256=digest)
    assert plain(read) == plain(cfg)
    check(read, TrainConfig)
    assert yaml.safe_load(text)["schema"] == SCHEMA


def test_small_numbers_and_odd_strings_survive(cfg):
    odd = OmegaConf.merge(
        cfg, {"optimizer": {"lr": 1e-05}, "tracking": {"run_name": "tab\t: #1 'é' 1e-3 no 2020-01-01"}}
    )
    assert plain(load_stored(stored_text(odd), origin="x")) == plain(odd)


TARGETS_OF_OTHERS = (
    "os.system", "logging.os.system", "joblib.load", "builtins.open", "builtins.eval", "torch.hub.load",
    "numpy.load", "pandas.read_pickle", "shutil.copyfile", "pathlib.Path.write_text", "pickle.loads",
    "xray_pneumonia.cli.os.system", "xray_pneumonia.models.cnn.nn.Module", ".CNN", "..os.system",
    "xray_pneumonia.models.cnn.CNN.__init__.__globals__", "XRAY_PNEUMONIA.models.cnn.CNN",
    "xray_pneumonia.models.cnn.CNN ", "", "hydra.utils.instantiate", "xray_pneumonia.config.build",
)  # fmt: skip


@pytest.mark.parametrize("name", TARGETS_OF_OTHERS)
def test_targets_off_the_list(cfg, canary, name, caplog, monkeypatch):
    values = plain(cfg)
    values["model"] = {"_target_": name, "path": str(canary), "command": f"touch {canary}"}
    monkeypatch.setattr("importlib.import_module", lambda *_: pytest.fail("imported before it was checked"))
    with caplog.at_level(logging.WARNING):
        refused(yaml.safe_dump(values), f"model._target_={name!r}", "not on the list")
    assert "a stored config was refused" in caplog.text


TOUCH = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": ["CANARY"]}}
HIDDEN = {
    "in a list": {"model": {"filters": [1, TOUCH]}},
    "in a list of lists": {"model": {"filters": [[[TOUCH]]]}},
    "as an argument": {"model": {"_target_": "xray_pneumonia.models.cnn.CNN", "_args_": [TOUCH]}},
    "as a partial": {"loss": {"_target_": "os.system", "_partial_": True}},
    "under hydra": {"hydra": {"job_logging": {"formatters": {"x": {"()": "os.system"}}, **TOUCH}}},
    "hydra's own launcher": {"hydra": {"launcher": {"_target_": sorted(TARGETS)[0]}}},
    "hydra deeper": {"data": {"hydra": {"searchpath": ["file:///tmp"]}}},
    "under any key": {"data": {"no": {"such": {"key": TOUCH}}}},
    "as no text": {"model": {"_target_": ["os.system"]}},
    "as a mapping": {"model": {"_target_": {"_target_": "os.system"}}},
    "by interpolation": {"a": "os.system", "model": {"_target_": "${a}"}},
    "by a node's interpolation": {"model": "${x}", "x": TOUCH},
    "by an environment variable": {"seed": "${oc.env:SECRET}"},
    "by Hydra's resolver": {"seed": "${hydra:runtime.cwd}"},
    "by a made-up resolver": {"seed": "${shell:touch CANARY}"},
    "in a key": {"${oc.env:HOME}": 1},
    "in a longer string": {"home": "x/${oc.env:SECRET}/y"},
    "by decoding": {"seed": "${oc.decode:'1'}"},
    "missing": {"seed": "???"},
    "recursion switched off": {"model": {"_recursive_": False, **TOUCH}},
}


@pytest.mark.parametrize("case", HIDDEN)
def test_targets_and_resolvers_wherever_they_hide(case, canary, monkeypatch):
    monkeypatch.setenv("SECRET", "hush")
    text = yaml.safe_dump(HIDDEN[case]).replace("CANARY", str(canary))
    if "alias" in text or "&" in text:
        pytest.fail("the attack should be about something else")
    with pytest.raises(InputError) as caught:
        load_stored(text, origin="run_id=abc")
    assert "hush" not in str(caught.value)


def test_an_escaped_dollar_is_found_too():
    refused('seed: "\\x24{oc.env:HOME}"\n', "nothing in it is looked up")


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
ODD = {
    "a bomb of aliases": BOMB,
    "an anchor": "a: &x 1\n",
    "an alias to itself": "a: &x [*x]\n",
    "a merge": "<<: {a: 1}\n",
    "a byte-order mark": "\ufeffa: 1\n",
    "tabs": "a:\n\tb: 1\n",
    "a null byte": "a: 1\0\n",
    "windows line ends": "a: 1\r\nb: 2\r\n",
    "a key twice": "a: 1\na: 2\n",
    "a key twice, deep": "a: {b: [{c: 1, c: 2}]}\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "too deep": "a: " + "[" * 50_000 + "]" * 50_000,
    "deeper than any config": "a: " + "{a: " * 25 + "1" + "}" * 25,
    "too many values": "a: [" + "1," * 20_000 + "]",
    "a python object": "a: !!python/object/apply:os.system ['touch CANARY']\n",
    "a python name": "a: !!python/name:os.system\n",
    "a path object": "a: !!python/object/apply:pathlib.Path [x]\n",
    "a tag of its own": "a: !mine 1\n",
    "binary": "a: !!binary aGk=\n",
    "a set": "a: !!set {x, y}\n",
    "a list": "- 1\n",
    "nothing": "",
    "broken": "a: [1\n",
    "numbers as keys": "1: 2\n",
    "a number of a million digits": "a: " + "9" * 1_000_000,
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_yaml_that_is_not_plain(case, canary):
    text = ODD[case].replace("CANARY", str(canary))
    refused(text)


def test_a_config_of_50_mb_is_not_even_decoded(monkeypatch):
    monkeypatch.setattr(stored_config, "read_plain_yaml", lambda *_: pytest.fail("parsed"))
    refused(b"a: '" + b"x" * (50 * MAX_BYTES) + b"'\n", "bytes, over")


def test_bytes_that_are_no_text():
    refused(b"a: \xff\xfe\n", "no plain YAML")


def test_an_altered_config(cfg):
    text = stored_text(cfg)
    digest = hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(InputError, match="not the one it was trained with"):
        load_stored(text.replace("seed: 0", "seed: 1"), origin="x", sha256=digest)


def test_a_newer_schema_is_refused_by_both_names(cfg):
    newer = stored_text(cfg).replace(f"schema: {SCHEMA}", f"schema: {SCHEMA + 1}").replace("version: 0", "version: 99")
    refused(newer, f"schema {SCHEMA + 1}", "xray-pneumonia 99", f"up to {SCHEMA}")
    for odd in ("-1", "'1'", "1.5", "{}"):
        refused(stored_text(cfg).replace(f"schema: {SCHEMA}\n", f"schema: {odd}\n"), "schema")


def test_a_config_from_before_a_key_existed_gets_what_it_meant(cfg, monkeypatch):
    target = cfg.trainer._target_
    new = {"": {"rate": 3, "seed": 77}, target: {"new": None}, "xray_pneumonia.models.mlp.MLP": {"other": 1}}
    monkeypatch.setattr(stored_config, "MEANT_BEFORE", new)
    for text in (stored_text(cfg), OmegaConf.to_yaml(cfg, resolve=True)):
        read = plain(load_stored(text, origin="x"))
        assert (read["trainer"]["new"], read["rate"], read["seed"]) == (None, 3, 0)
        assert "other" not in read["model"]


def test_a_target_that_moved_is_found_at_its_new_place():
    for old, new in stored_config.RENAMED.items():
        assert new in TARGETS
        assert load_stored(f"limits: {{_target_: {old}}}\n", origin="x").limits._target_ == new


@pytest.mark.parametrize("name", ["first", "first_resnet"])
def test_the_first_configs_that_were_ever_stored_still_train(name):
    """Whoever adds a key says in MEANT_BEFORE what its absence meant, else this fails."""
    read = load_stored((Path(__file__).parent / "stored" / f"{name}.yaml").read_bytes(), origin=name)
    check(read, TrainConfig)


def test_a_net_of_a_card(cfg, canary):
    net = plain(cfg.model)
    assert check_net(net, origin="model.json") == net
    for wrong in (
        {"_target_": "os.system", "command": f"touch {canary}"},
        {"_target_": "xray_pneumonia.training.optimizers.adamw"},
        {**net, "filters": [{"_target_": "os.getcwd"}]},
        {**net, "dropout": "${oc.env:HOME}"},
        {**net, "dropout": 7.0},
        {**net, "more": 1},
        {**net, "_args_": [1]},
        {}, [], None, "xray_pneumonia.models.cnn.CNN", {"_target_": None},
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"model\.json"):
            check_net(wrong, origin="model.json")


def test_nothing_is_looked_up_when_something_is_built(cfg, monkeypatch):
    monkeypatch.setenv("SECRET", "0.25")
    with pytest.raises(InputError, match="nothing is looked up"):
        build({**plain(cfg.model), "dropout": "${oc.env:SECRET}"})
    with pytest.raises(InputError, match="not on the list"):
        build({"_target_": ["os.getcwd"]})
