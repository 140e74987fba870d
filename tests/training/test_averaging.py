"""The average is Lightning's, bit for bit, and on a GPU it stays there."""

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import nn
from xray_pneumonia.training.averaging import Averaging


class Small(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))  # one buffer holds a whole number


def trainer_on(device):
    return SimpleNamespace(strategy=SimpleNamespace(root_device=device), global_step=0)


def step(module, trainer, *callbacks):
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape))
        module.net[1].num_batches_tracked.add_(17)
    trainer.global_step += 1
    for callback in callbacks:
        callback.on_train_batch_end(trainer, module, None, None, 0)


@pytest.mark.parametrize("resumed", [False, True])
def test_lightnings_average_bit_for_bit(resumed):
    torch.manual_seed(0)
    module, trainer = Small(), trainer_on(torch.device("cpu"))
    ours, theirs = Averaging(decay=0.97), EMAWeightAveraging(decay=0.97)
    for callback in (ours, theirs):
        callback.setup(trainer, module, "fit")
    for number in range(20):
        step(module, trainer, ours, theirs)
        if resumed and number == 9:
            kept: dict = {"state_dict": module.state_dict()}
            theirs.on_save_checkpoint(trainer, module, kept)
            ours = Averaging(decay=0.97)
            assert ours.state_key == theirs.state_key
            ours.setup(trainer, module, "fit")
            ours.load_state_dict(theirs.state_dict())
            ours.on_load_checkpoint(trainer, module, kept)
    one, other = ours._average_model.state_dict(), theirs._average_model.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one["n_averaged"] == 20
    assert 17 < one["module.net.1.num_batches_tracked"] < 17 * 20


def test_the_average_is_made_and_moved_where_the_net_will_be():
    """torch's device `meta` has shapes alone, so reading a value or bringing it back raises."""
    elsewhere = torch.device("meta")
    module, trainer, averaging = Small(), trainer_on(elsewhere), Averaging(decay=0.97)
    averaging.setup(trainer, module, "fit")
    module.to(elsewhere)  # as Lightning does after it
    for _ in range(3):
        step(module, trainer, averaging)
    averaging.on_validation_epoch_start(trainer, module)
    averaging.on_train_end(trainer, module)
    assert {each.device for each in averaging._average_model.state_dict().values()} == {elsewhere}
