"""Beside the net: on a GPU everything stays there and nobody waits, as far as that can be seen without one."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from lightning_fabric.utilities import move_data_to_device

from xray_pneumonia.data.augment.augmentation import Augmentation
from xray_pneumonia.data.augment.parameters import Limits
from xray_pneumonia.data.device_images import arrange

EVERYTHING = {field.name: 0.5 for field in fields(Limits)}


def test_the_pretended_gpu_tells_what_a_real_one_would(pretended_gpu):
    there, here = torch.ones(3, device=pretended_gpu), torch.ones(3)
    with pytest.raises(RuntimeError, match="device"):
        there + here
    for wait in (lambda: float(there[0]), lambda: bool((there > 0).all()), lambda: there[there > 0]):
        with pytest.raises(RuntimeError, match=r"_local_scalar_dense|aten.nonzero"):
            wait()
    with pytest.raises(AssertionError, match="brings values back from the GPU"):
        there.cpu()


@pytest.mark.parametrize(
    ("side", "border", "resident"),
    [
        (32, "replicate", "always"),
        (50, "constant", "never"),
        (50, "reflect", "always"),
    ],  # whole tiles and blocks, and not
)
def test_a_batch_is_finished_on_the_gpu_and_nobody_waits_for_it(pretended_gpu, side, border, resident):
    augmentation = Augmentation(**EVERYTHING, border=border, engine="opencv", device="auto")
    beside = arrange(pretended_gpu, np.zeros((30, 64, 64), np.uint8), augmentation, wanted=resident)
    rows = np.arange(24)
    sent = {
        "label": torch.zeros(24),
        "index": torch.from_numpy(rows),
        "changes": augmentation.draw(side=side, seed=3, epoch=1, records=rows),
    }
    sent |= {"side": side} if resident == "always" else {"image": torch.zeros(24, 1, side, side, dtype=torch.uint8)}
    assert len(sent["changes"]) == 9  # everything that can happen does
    image = beside.finish(move_data_to_device(sent, pretended_gpu))["image"]
    assert (image.device, image.dtype, image.shape) == (pretended_gpu, torch.uint8, (24, 1, side, side))
