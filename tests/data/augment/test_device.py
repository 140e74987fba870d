"""Beside the net, a whole batch at a time: the changes that OpenCV makes one by one, within rounding."""

from dataclasses import fields
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from xray_pneumonia.data.augment.device import DeviceChanger, pack
from xray_pneumonia.data.augment.opencv import Changer
from xray_pneumonia.data.augment.parameters import Limits, draw

NOTHING = {field.name: 0 for field in fields(Limits)}
# change -> the mean distance to OpenCV's pixels that is allowed, in gray levels; what OpenCV rounds to whole numbers on
# its way (the frequencies of a JPEG) may fall on the other side of a step.
NEAR = {
    "rotate": 0.001, "shift_x": 0.001, "zoom": 0.001, "shear": 0.001, "flip_horizontal": 0, "flip_vertical": 0,
    "brightness": 0, "contrast": 0, "gamma": 0, "equalise": 0.01, "sharpen": 0.001, "shrink": 0, "blur": 0.001,
    "noise": 0.001, "compress": 0.2, "erase": 0,
}  # fmt: skip


def films(side, count=24):
    rng = np.random.default_rng(1)
    coarse = torch.from_numpy(rng.normal(0.45, 0.25, (count, 1, 12, 12)))
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")[:, 0]
    return (smooth.clip(0, 1).numpy() * 255).astype(np.uint8)


def on_device(images, changes, border="replicate"):
    changed = DeviceChanger(border=border)(torch.from_numpy(images)[:, None], pack(changes, side=images.shape[1]))
    assert changed.dtype == torch.uint8
    return changed[:, 0].numpy()


def drawn(side, count, **limits):
    return draw(Limits(**NOTHING | limits), side=side, seed=3, epoch=1, records=range(count))


def distance(one, other):
    return np.abs(one.astype(float) - other.astype(float))


@pytest.mark.parametrize("side", [64, 50])  # whole blocks and tiles, and not
@pytest.mark.parametrize("name", NEAR)
def test_each_change_is_that_of_opencv(name, side):
    before = films(side)
    limit = 20 if name in {"rotate", "shear"} else 0.4 if name in {"shift_x", "zoom", "noise"} else 0.8
    changes = drawn(side, len(before), **{name: limit})
    theirs, ours = Changer(border="replicate")(before, changes), on_device(before, changes)
    assert distance(theirs, before).mean() > 0.5
    assert distance(theirs, ours).mean() <= NEAR[name]
    assert np.quantile(distance(theirs, ours), 0.97) <= 1


@pytest.mark.parametrize("border", ["replicate", "constant", "reflect"])
def test_the_space_beyond_the_picture_is_filled_as_opencv_fills_it(border):
    before = films(48)
    changes = drawn(48, len(before), rotate=30, shift_x=0.3, zoom=0.3, flip_vertical=0.5)
    assert distance(Changer(border=border)(before, changes), on_device(before, changes, border)).mean() < 0.001


@pytest.mark.parametrize(
    "alone", [{"rotate": 20, "zoom": 0.2}, {"blur": 1}, {"compress": 1}], ids=["warp", "blur", "jpeg"]
)
def test_each_change_is_that_of_a_third_library(alone):
    before = films(48)
    changes = drawn(48, len(before), **alone)
    ours = on_device(before, changes)
    for row, image in enumerate(before):
        if changes.matrix is not None:
            x_y = changes.matrix[row][::-1, [1, 0, 2]]  # SciPy has rows before columns, and asks for new -> old
            turn = np.linalg.inv(x_y[:, :2])
            theirs = ndimage.affine_transform(image.astype(float), turn, -turn @ x_y[:, 2], order=1, mode="nearest")
        elif changes.blur[row]:
            theirs = ndimage.gaussian_filter(image.astype(float), changes.blur[row], truncate=3.5, mode="mirror")
        else:
            file = BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=int(changes.quality[row]))
            theirs = np.asarray(Image.open(file))
        assert distance(theirs, ours[row]).mean() < 0.5
        assert distance(theirs, ours[row]).mean() < 0.3 * distance(image, ours[row]).mean() + 0.3


def test_images_that_no_change_concerns_stay_as_they_are():
    before = films(32)
    changes = drawn(32, len(before), blur=0.3, equalise=0.3, compress=0.3, erase=0.3)
    ours = on_device(before, changes)
    erased = (changes.boxes[:, :, 1] > changes.boxes[:, :, 0]).any(1)
    concerned = (changes.blur + changes.clip_limit + changes.quality > 0) | erased
    assert 0 < concerned.sum() < len(before)
    np.testing.assert_array_equal(ours[~concerned], before[~concerned])
    assert (ours[concerned] != before[concerned]).any((1, 2)).all()
    none = drawn(32, len(before))
    assert pack(none, side=32) == {}
    np.testing.assert_array_equal(on_device(before, none), before)


def test_images_of_several_sizes_follow_each_other():
    """The shared noise is kept for one size, and made anew for another."""
    changer = DeviceChanger(border="replicate")
    for side in (32, 48, 32):
        before = films(side, 4)
        changes = drawn(side, 4, noise=0.2)
        changed = changer(torch.from_numpy(before)[:, None], pack(changes, side=side))[:, 0].numpy()
        np.testing.assert_array_equal(changed, Changer(border="replicate")(before, changes))
