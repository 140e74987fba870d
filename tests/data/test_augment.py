"""Augmentation: a pure function of (seed, epoch, record)."""

import numpy as np
import pytest
from omegaconf import OmegaConf

from xray_pneumonia.config import build
from xray_pneumonia.data.augment import Augmentation


def compose(group):
    from hydra import compose, initialize_config_module

    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        return compose("train", [f"augmentation={group}"]).augmentation


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (4, 32, 32)).astype(np.uint8)


def test_none_leaves_the_images_alone(images):
    augmentation = build(compose("none"))
    assert not augmentation.active
    assert augmentation(images, seed=0, epoch=0, records=range(4)) is images


@pytest.mark.parametrize("group", ["light", "strong", "machine", "seed"])
def test_the_same_for_any_batch_and_order(images, group):
    augmentation = build(compose(group))
    together = augmentation(images, seed=3, epoch=2, records=[10, 11, 12, 13])
    alone = np.stack([augmentation(images[[i]], seed=3, epoch=2, records=[10 + i])[0] for i in (3, 1, 0, 2)])
    np.testing.assert_array_equal(together[[3, 1, 0, 2]], alone)
    assert together.dtype == np.uint8
    assert together.shape == images.shape
    assert (together != images).any()


@pytest.mark.parametrize("change", [{"seed": 4}, {"epoch": 3}, {"records": [20, 21, 22, 23]}])
def test_seed_epoch_and_record_each_matter(images, change):
    augmentation = build(compose("light"))
    asked = {"seed": 3, "epoch": 2, "records": [10, 11, 12, 13]}
    assert (augmentation(images, **asked) != augmentation(images, **(asked | change))).any()


def test_the_global_random_state_is_neither_read_nor_moved(images):
    augmentation = build(compose("strong"))
    np.random.seed(1)
    first = augmentation(images, seed=0, epoch=0, records=range(4))
    before = np.random.get_state()[1].copy()
    np.random.seed(2)
    np.testing.assert_array_equal(first, augmentation(images, seed=0, epoch=0, records=range(4)))
    np.random.seed(1)
    assert (np.random.get_state()[1] == before).all()


def test_the_seed_group_is_the_notebooks(images):
    config = OmegaConf.to_container(compose("seed"))
    changed = {key: value for key, value in config.items() if value and key not in {"_target_", "border"}}
    assert changed == {"rotate": 30, "shift_x": 0.3, "shift_y": 0.2, "zoom": 0.2, "flip_vertical": 0.5}


def test_shifts_stay_within_their_range():
    point = np.zeros((1, 64, 64), np.uint8)
    point[0, 32, 32] = 255
    off = OmegaConf.to_container(compose("none")) | {"shift_x": 0.1, "border": "constant"}
    del off["_target_"]
    augmentation = Augmentation(**off)
    columns = [
        int(np.argmax(augmentation(point, seed=0, epoch=epoch, records=[0])[0].sum(axis=0))) for epoch in range(60)
    ]
    assert max(columns) - 32 <= 7
    assert 32 - min(columns) <= 7
    assert len(set(columns)) > 5
