"""Augmentation: a pure function of (seed, epoch, record)."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from xray_pneumonia.config import build
from xray_pneumonia.data.augment.augmentation import Augmentation
from xray_pneumonia.data.augment.parameters import SHARED, own, shared
from xray_pneumonia.data.augment.transforms import TRANSFORMS, Blur, Sharpen
from xray_pneumonia.errors import InputError


def composed(group, **changes):
    """The keys of a group of `conf/augmentation`."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        cfg = compose("train", [f"augmentation={group}"]).augmentation
    return OmegaConf.to_container(cfg) | changes


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (4, 32, 32)).astype(np.uint8)


def test_none_leaves_the_images_alone(images):
    augmentation = build(composed("none"))
    assert not augmentation.active
    assert augmentation(images, seed=0, epoch=0, records=range(4)) is images


@pytest.mark.parametrize("group", ["light", "strong", "machine", "seed"])
def test_the_same_for_any_batch_and_order(images, group):
    augmentation = build(composed(group))
    together = augmentation(images, seed=3, epoch=2, records=[10, 11, 12, 13])
    alone = np.stack([augmentation(images[[i]], seed=3, epoch=2, records=[10 + i])[0] for i in (3, 1, 0, 2)])
    np.testing.assert_array_equal(together[[3, 1, 0, 2]], alone)
    assert together.dtype == np.uint8
    assert together.shape == images.shape
    assert (together != images).any()


@pytest.mark.parametrize("change", [{"seed": 4}, {"epoch": 3}, {"records": [20, 21, 22, 23]}])
def test_seed_epoch_and_record_each_matter(images, change):
    augmentation = build(composed("light"))
    asked = {"seed": 3, "epoch": 2, "records": [10, 11, 12, 13]}
    assert (augmentation(images, **asked) != augmentation(images, **(asked | change))).any()


def test_the_global_random_state_is_neither_read_nor_moved(images):
    augmentation = build(composed("strong"))
    np.random.seed(1)
    first = augmentation(images, seed=0, epoch=0, records=range(4))
    before = np.random.get_state()[1].copy()
    np.random.seed(2)
    np.testing.assert_array_equal(first, augmentation(images, seed=0, epoch=0, records=range(4)))
    np.random.seed(1)
    assert (np.random.get_state()[1] == before).all()


def test_the_seed_group_is_the_notebooks(images):
    changed = {key: value for key, value in composed("seed").items() if value and not isinstance(value, str)}
    assert changed == {"rotate": 30, "shift_x": 0.3, "shift_y": 0.2, "zoom": 0.2, "flip_vertical": 0.5}


def test_shifts_stay_within_their_range():
    point = np.zeros((1, 64, 64), np.uint8)
    point[0, 32, 32] = 255
    augmentation = build(composed("none", shift_x=0.1, border="constant"))
    columns = [
        int(np.argmax(augmentation(point, seed=0, epoch=epoch, records=[0])[0].sum(axis=0))) for epoch in range(60)
    ]
    assert max(columns) - 32 <= 7
    assert 32 - min(columns) <= 7
    assert len(set(columns)) > 5


def test_a_key_that_is_missing_or_unknown_raises():
    values = composed("light")
    del values["_target_"]
    with pytest.raises(TypeError, match=r"missing a required.*zoom"):
        Augmentation(**{key: value for key, value in values.items() if key != "zoom"})
    with pytest.raises(TypeError, match=r"unexpected.*'zooom'"):
        Augmentation(**values, zooom=0)


def test_images_are_augmented_on_the_cpu_alone():
    for device in ("auto", "cpu"):
        build(composed("light", device=device))
    with pytest.raises(InputError, match=r"^augmentation.device=net: .* use augmentation.device=cpu[^\n]*$"):
        build(composed("light", device="net"))


@pytest.fixture(scope="module")
def smooth():
    """Smooth images with all gray levels, as an X-ray has them."""
    rng = np.random.default_rng(1)
    coarse = torch.from_numpy(rng.normal(0.45, 0.25, (8, 1, 12, 12)))
    smooth = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic")[:, 0]
    return (smooth.clip(0, 1).numpy() * 255).astype(np.uint8)


def sharpness(images):
    return np.abs(np.diff(images.astype(float), axis=2)).mean(axis=(1, 2))


STATISTICS = {  # what is measured of each image -> how far the means of both engines may lie apart
    "mean": (lambda images: images.mean(axis=(1, 2)), 2.0),
    "deviation": (lambda images: images.std(axis=(1, 2)), 1.5),
    "sharpness": (sharpness, 0.6),
    "black": (lambda images: (images == 0).mean(axis=(1, 2)), 0.015),
}


@pytest.mark.parametrize("group", ["light", "strong", "machine", "seed"])
def test_both_engines_change_images_alike(smooth, group):
    """Over 1,200 augmented images: their means, spreads, sharpness and histograms agree."""
    many = np.concatenate([smooth] * 150)
    ours, theirs = (
        build(composed(group, engine=engine))(many, seed=5, epoch=0, records=range(len(many)))
        for engine in ("opencv", "albumentations")
    )
    for name, (measure, near) in STATISTICS.items():
        one, other = measure(ours), measure(theirs)
        assert abs(one.mean() - other.mean()) < near, name
        assert abs(one.std() - other.std()) < near, name
    shares = [np.histogram(images, bins=16, range=(0, 256))[0] / images.size for images in (ours, theirs)]
    assert np.abs(shares[0] - shares[1]).sum() < 0.03


@pytest.mark.parametrize(
    "alone",
    [
        {"rotate": 20},
        {"shift_x": 0.2, "shift_y": 0.1},
        {"zoom": 0.3},
        {"shear": 10},
        {"flip_horizontal": 0.5},
        {"flip_vertical": 1},
        {"brightness": 0.3},
        {"contrast": 0.4},
        {"gamma": 0.6},
        {"equalise": 1},
        {"sharpen": 1},
        {"shrink": 1},
        {"blur": 1},
        {"noise": 0.2},
        {"compress": 1},
        {"erase": 1},
    ],
    ids=lambda alone: next(iter(alone)),
)
def test_each_change_alone_is_albumentations(smooth, alone):
    """The mean and the spread, over many draws, of every 4 x 4 patch of one image and of its steps agree."""
    many = np.repeat(smooth[:1], 600, axis=0)
    ours, theirs = (
        build(composed("none", engine=engine, **alone))(many, seed=5, epoch=0, records=range(600)).astype(float)
        for engine in ("opencv", "albumentations")
    )
    patches = [images.reshape(600, 16, 4, 16, 4).mean(axis=(2, 4)) for images in (ours, theirs)]
    spread = max(patches[1].std(axis=0).mean(), 1)
    assert np.abs(patches[0].mean(axis=0) - patches[1].mean(axis=0)).mean() < 0.12 * spread + 0.3
    assert abs(patches[0].std(axis=0).mean() - patches[1].std(axis=0).mean()) < 0.12 * spread + 0.3
    steps = [sharpness(images) for images in (ours, theirs)]
    assert abs(steps[0].mean() - steps[1].mean()) < 0.05 * steps[1].mean()


@pytest.mark.parametrize(("kind", "amount"), [(Blur, 2.0), (Sharpen, 0.6)])
def test_blur_and_sharpening_of_a_larger_image_change_the_same_shapes(kind, amount):
    """An image of twice the side is changed as the one of 128 pixels is, enlarged."""
    transform = kind(**{kind.__name__.lower(): 1})
    y, x = np.mgrid[0:256, 0:256] / 256
    large = (127 + 60 * np.sin(60 * x) * np.cos(50 * y)).astype(np.uint8)
    small = large.reshape(128, 2, 128, 2).mean(axis=(1, 3)).astype(np.uint8)
    expected = transform.apply(small, amount).astype(float)
    found = transform.apply(large, amount).reshape(128, 2, 128, 2).mean(axis=(1, 3))
    changed = np.abs(expected - small).mean()
    assert changed > 3
    assert np.abs(found - expected).mean() < 0.2 * changed


# What version 0.1.0 drew and made, by which the shipped models reproduce, stands in drawn.npz.
SIDE = 24
ASKED = {"seed": 3, "epoch": 2, "records": [0, 1, 2, 7, 41, 64, 128, 999, 5231, 5232, 20_000, 99_999]}
GROUPS = ["light", "strong", "machine", "seed", "none"]


@pytest.fixture(scope="module")
def stored():
    with np.load(Path(__file__).with_name("drawn.npz")) as arrays:
        return dict(arrays)


def smooth_images():
    """Images (B, SIDE, SIDE) uint8 with smooth shapes, some noise and all gray levels."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    phase = np.arange(len(ASKED["records"]))[:, None, None]
    noise = np.random.default_rng(0).normal(0, 10, (len(phase), SIDE, SIDE))
    return np.clip(127 + 110 * np.sin(7 * x + phase) * np.cos(5 * y - phase) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("engine", ["opencv", "albumentations"])
@pytest.mark.parametrize("group", GROUPS)
def test_augmented_images_are_those_of_the_first_version(stored, group, engine):
    images = build(composed(group, engine=engine))(smooth_images(), **ASKED).astype(int)
    expected = stored[f"{group}/{engine}"]
    assert (np.abs(images - expected) <= 1).all()  # another processor may round otherwise
    assert (images == expected).mean() > 0.99


def test_the_uniform_numbers_are_those_of_the_first_version(stored):
    records = np.array(ASKED["records"], np.uint64)
    drawn = shared(*range(SHARED)).draw(records, seed=ASKED["seed"], epoch=ASKED["epoch"])
    np.testing.assert_array_equal(drawn, stored["numbers"])


@pytest.mark.parametrize("kind", TRANSFORMS, ids=lambda kind: kind.__name__)
def test_the_parameters_are_those_of_the_first_version(stored, kind):
    values = composed("machine")
    transform = kind(**{field.name: values[field.name] for field in fields(kind)})
    chosen, parameters = transform.draw(stored["numbers"][list(kind.stream.columns)], side=SIDE)
    expected = stored[f"drawn/{kind.__name__}"]
    where = chosen.reshape(-1, *[1] * (parameters.ndim - 1))
    got = np.where(where, parameters, 0)
    if kind.__name__ == "Erase":
        got = got * (got[..., 1:2] > got[..., :1])
    np.testing.assert_allclose(got.astype(expected.dtype), expected, rtol=1e-12)


def test_every_number_of_the_shared_stream_has_one_use():
    """A transform that came later must take a stream of its own, or the numbers of the others would change."""
    columns = [column for kind in TRANSFORMS if not kind.stream.name for column in kind.stream.columns]
    assert sorted(columns) == list(range(SHARED))
    names = [kind.stream.name for kind in TRANSFORMS if kind.stream.name]
    assert len(set(names)) == len(names)


def test_a_stream_of_its_own_draws_other_numbers():
    records = np.arange(500, dtype=np.uint64)
    drawn = [stream.draw(records, seed=3, epoch=2) for stream in (shared(0, 1), own("one", 2), own("two", 2))]
    assert all(numbers.shape == (2, 500) and 0 <= numbers.min() < numbers.max() < 1 for numbers in drawn)
    correlation = np.corrcoef(np.concatenate(drawn))
    assert np.abs(correlation - np.eye(6)).max() < 0.15
