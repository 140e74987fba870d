"""Configs of trials, composed once and changed in copies, are what Hydra would have composed."""

import pytest
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from xray_pneumonia.sweeps.composing import WarmLoader


@pytest.fixture
def loaders():
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        plain = GlobalHydra.instance().config_loader()
        master = plain.load_configuration("train", overrides=[], run_mode=RunMode.MULTIRUN)
        yield plain, WarmLoader(plain), master


LINES = [
    ["optimizer.lr=0.01", "seed=3"],
    ["optimizer=sgd", "optimizer.lr=0.02"],
    ["optimizer=sgd", "optimizer.lr=0.03", "optimizer.momentum=0.5"],
    ["model.activations=[tanh,tanh,tanh]", "model=cnn"],
    ["experiment=seed_final", "loss.class_weights={NORMAL:2,PNEUMONIA:1}"],
    ["experiment=seed_final", "loss.class_weights=none"],
    ["+sweep.space.extra=1", "sweep.space.extra=2"],
    ["++sweep.trial={number: 3, seeds: [1, 2]}", "++optimizer.lr=0.5", "++sweep.space.new=1"],
    ["optimizer.lr=0.5", "optimizer.lr=0.25"],
    ["data.folds=${seed}", "tracking.run_name='a=b, c'"],
    [],
]


@pytest.mark.parametrize("repeat", [1, 2])
def test_equal_to_what_hydra_composes(loaders, repeat):
    plain, warm, master = loaders
    for lines in LINES * repeat:
        expected, found = (OmegaConf.to_container(one.load_sweep_config(master, lines)) for one in (plain, warm))
        for config in (expected, found):
            config["hydra"]["job"].pop("override_dirname")  # a name for folders, which trials do not use
        assert found == expected, lines


def test_a_wrong_key_is_refused_as_hydra_refuses_it(loaders):
    _, warm, master = loaders
    with pytest.raises(HydraException):
        warm.load_sweep_config(master, ["optimizer.lrr=1"])


def test_hydra_composes_once_for_each_choice_of_groups(loaders, monkeypatch):
    plain, warm, master = loaders
    asked = []
    monkeypatch.setattr(plain, "load_sweep_config", lambda m, o: asked.append(o) or original(m, o))
    original = type(plain).load_sweep_config.__get__(plain)
    for lr in (0.1, 0.2, 0.3):
        for group in ("sgd", "adamw"):
            assert warm.load_sweep_config(master, [f"optimizer={group}", f"optimizer.lr={lr}"]).optimizer.lr == lr
    assert asked == [["optimizer=sgd"], ["optimizer=adamw"]]
