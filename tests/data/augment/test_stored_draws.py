"""Test that augmentation draws the numbers of version 0.1.0, by which the shipped models reproduce.

`drawn.npz` was written by that version: the uniform numbers, the parameters of each transform, the augmented images.
"""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from xray_pneumonia.config import build
from xray_pneumonia.data.augment.parameters import SHARED, shared
from xray_pneumonia.data.augment.transforms import TRANSFORMS

SIDE = 24
ASKED = {"seed": 3, "epoch": 2, "records": [0, 1, 2, 7, 41, 64, 128, 999, 5231, 5232, 20_000, 99_999]}
GROUPS = ["light", "strong", "machine", "seed", "none"]


@pytest.fixture(scope="module")
def stored():
    with np.load(Path(__file__).with_name("drawn.npz")) as arrays:
        return dict(arrays)


def composed(group):
    from hydra import compose, initialize_config_module

    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        return compose("train", [f"augmentation={group}"]).augmentation


def smooth_images():
    """Images (B, SIDE, SIDE) uint8 with smooth shapes, some noise and all gray levels."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    phase = np.arange(len(ASKED["records"]))[:, None, None]
    noise = np.random.default_rng(0).normal(0, 10, (len(phase), SIDE, SIDE))
    return np.clip(127 + 110 * np.sin(7 * x + phase) * np.cos(5 * y - phase) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("engine", ["opencv", "albumentations"])
@pytest.mark.parametrize("group", GROUPS)
def test_augmented_images_are_those_of_the_first_version(stored, group, engine):
    images = build({**composed(group), "engine": engine})(smooth_images(), **ASKED).astype(int)
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
