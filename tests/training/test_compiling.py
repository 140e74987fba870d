"""A compiled net computes the same, names its weights the same, and is a plain one after the training."""

import copy
from types import SimpleNamespace

import pytest
import torch
from xray_pneumonia.training.compiling import Compiling

from xray_pneumonia.models.cnn import CNN


@pytest.mark.parametrize("failed", [False, True])
def test_compiled_for_the_training_alone(failed):
    compiled = []

    def compiler(graph, _):
        compiled.append(graph)
        return graph.forward

    net = CNN(image_size=16, filters=[4], activations=["relu"], pool="max", dense=4, dropout=0, mean=0, std=1)
    image = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    names, before = list(net.state_dict()), net(image)
    compiling, module = Compiling(compiler), SimpleNamespace(net=net)
    compiling.on_fit_start(None, module)
    torch.testing.assert_close(net(image), before)
    assert len(compiled) == 1
    assert list(net.state_dict()) == names
    assert list(copy.deepcopy(net).state_dict()) == names  # as averaging does
    if failed:
        compiling.on_exception(None, module, ValueError())
    else:
        compiling.on_fit_end(None, module)
    torch.compiler.reset()
    net(image)
    assert len(compiled) == 1
