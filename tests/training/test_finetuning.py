"""Frozen parts, and a lower rate below the last layer."""

import pytest
import torch
from torch import nn

from xray_pneumonia.errors import InputError
from xray_pneumonia.training.finetuning import freeze, parameter_groups, slow_backbone
from xray_pneumonia.training.optimizers import rmsprop, sgd


def make_net():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(2, 1)
    )


def test_frozen_parts_keep_their_weights_and_batch_statistics():
    net = make_net()
    freeze(net, ["0"])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD(parameter_groups(net, backbone_lr=1.0), lr=1.0)
    net(torch.rand(3, 1, 5, 5)).sum().backward()
    optimizer.step()
    changed = {name.split(".")[0] for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"1", "3"}


@pytest.mark.parametrize("names", [["stem"], ["0", "1", "3"]])
def test_what_cannot_be_frozen_is_refused(names):
    with pytest.raises(InputError, match=r"trainer\.freeze"):
        freeze(make_net(), names)


@pytest.mark.parametrize("frozen", [[], ["3"]])
def test_all_but_the_last_layer_is_trained_at_a_lower_rate(frozen):
    net = make_net()
    freeze(net, frozen)
    optimizer = sgd(
        parameter_groups(net, backbone_lr=0.1), lr=1.0, momentum=0, nesterov=False, weight_decay=0, fused=False
    )
    slow_backbone(optimizer)
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert rates.get(id(net[3].weight)) == (None if frozen else 1.0)
    assert rates[id(net[1].weight)] == rates[id(net[0][0].weight)] == pytest.approx(0.1)


def test_the_fused_rmsprop_takes_groups():
    groups = parameter_groups(make_net(), backbone_lr=0.1)
    optimizer = rmsprop(groups, lr=1.0, rho=0.9, epsilon=1e-7, weight_decay=0, fused=True)
    assert len(optimizer.state) == 8
