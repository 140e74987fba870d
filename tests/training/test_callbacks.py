"""Callbacks: the GPU is waited for once an epoch, a net is compiled while it trains, each process is set up."""

import copy
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_module
from pytorch_lightning.callbacks import EMAWeightAveraging

from xray_pneumonia.config import build
from xray_pneumonia.models.cnn import CNN
from xray_pneumonia.training import performance
from xray_pneumonia.training.callbacks import Compile, ProcessSetup, build_callbacks
from xray_pneumonia.training.progress import EpochLog


def built(folder, *overrides):
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        settings = build(compose("train", list(overrides)).trainer)
    return build_callbacks(settings, own=[], monitor="val/auroc", mode="max", folder=folder, identity={})


@pytest.mark.parametrize(("device", "waits"), [("cpu", []), ("cuda", [11])])
def test_an_epoch_ends_when_the_gpu_is_done(monkeypatch, device, waits):
    clock, waited, done, logged = EpochLog(), [], [], {}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda where: waited.append(len(done)))
    module = SimpleNamespace(device=torch.device(device), log_dict=logged.update)
    trainer = SimpleNamespace(
        world_size=2, callback_metrics={}, optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])]
    )
    clock.on_train_epoch_start(trainer, module)
    for number in range(12):
        trainer.is_last_batch = number == 11
        clock.on_train_batch_end(trainer, module, None, {"label": torch.zeros(4)}, number)
        done.append(number)
    clock.on_train_epoch_end(trainer, module)
    assert waited == waits
    assert logged["time/images_per_second"] * logged["time/epoch_seconds"] > 12 * 4 * 2
    assert logged["optimizer/lr"] == 0.1


def test_compiled_while_it_trains_under_the_same_names():
    compiled = []

    def compiler(graph, _):
        compiled.append(graph)
        return graph.forward

    net = CNN(image_size=16, filters=[4], activations=["relu"], pool="max", dense=4, dropout=0, mean=0, std=1)
    image = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    names, before = list(net.state_dict()), net(image)
    callback, module = Compile(compiler), SimpleNamespace(net=net)
    callback.on_fit_start(None, module)
    torch.testing.assert_close(net(image), before)
    assert len(compiled) == 1
    assert list(net.state_dict()) == names
    assert list(copy.deepcopy(net).state_dict()) == names  # as averaging does
    callback.on_fit_end(None, module)
    torch.compiler.reset()
    net(image)
    assert len(compiled) == 1


@pytest.mark.parametrize(("trainer", "expected"), [("ddp", [{"keep_freed_memory": True, "threads": 1}]), ("cpu", [])])
def test_each_process_of_several_is_set_up(monkeypatch, tmp_path, trainer, expected):
    seen = []
    monkeypatch.setattr(performance, "prepare_process", lambda **settings: seen.append(settings))
    for callback in built(tmp_path, f"trainer={trainer}"):
        if isinstance(callback, ProcessSetup):
            callback.setup(None, None, "fit")
    assert seen == expected


@pytest.mark.parametrize(("accelerator", "device"), [("cpu", "cpu"), ("auto", "cuda")])
def test_weights_are_averaged_where_the_net_trains(monkeypatch, tmp_path, accelerator, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    callbacks = built(tmp_path, "trainer.ema_decay=0.9", f"trainer.accelerator={accelerator}")
    [averaging] = [each for each in callbacks if isinstance(each, EMAWeightAveraging)]
    assert averaging._device.type == device
    assert averaging.state_key == "EMAWeightAveraging"  # the name of its state in stored checkpoints
