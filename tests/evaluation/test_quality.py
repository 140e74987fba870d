"""Quality flags and small pictures."""

import base64
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from xray_pneumonia.data import synthetic
from xray_pneumonia.data.images.decode import decode, read_bytes
from xray_pneumonia.evaluation.input_gate import fit_gate
from xray_pneumonia.evaluation.overlay import overlay, thumbnail
from xray_pneumonia.evaluation.quality import MEANINGS, flag


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    root = tmp_path_factory.mktemp("films") / "60"
    synthetic.generate(root, patients=60, seed=1)
    return np.stack([decode(read_bytes(path), 64).pixels for path in sorted(root.rglob("*.jpeg"))][:120])


def test_films_are_not_flagged_and_what_was_done_to_them_is(films):
    gate = fit_gate(films[:80], films[80:])
    plain = flag(films[80:], gate.scores(films[80:]), gate)
    assert sum(map(bool, plain)) <= 2
    for wrong, name in (
        (255 - films[80:], "inverted"),
        (np.ascontiguousarray(np.rot90(films[80:], axes=(1, 2))), "turned"),
    ):
        found = flag(wrong, gate.scores(wrong), gate)
        assert np.mean([{"outside_training_range", name} <= set(flags) for flags in found]) > 0.7
    assert all(name in MEANINGS for flags in found for name in flags)


def test_little_contrast_and_a_missing_gate_are_said(films):
    flat = (films[:1] // 32 + 100).astype(np.uint8)
    assert flag(np.concatenate([flat, films[:1]]), np.full(2, np.nan), None) == [
        ["low_information", "not_checked"],
        ["not_checked"],
    ]


def test_an_overlay_has_the_files_shape_and_colours_only_where_it_is_hot(films):
    heat = np.zeros((64, 64), np.float32)
    heat[:32] = 1
    picture = np.asarray(overlay(films[0], heat, width=1000, height=500), int)
    assert picture.shape == (160, 320, 3)
    spread = np.ptp(picture, axis=2)
    assert spread[100:].max() == 0
    assert spread[:60].min() > 10


def test_a_thumbnail_is_small_and_holds_pixels_alone(films):
    uri = thumbnail(Image.fromarray(films[0]).resize((2000, 1000)), side=160)
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    with Image.open(BytesIO(data)) as image:
        assert image.size == (160, 80)
        assert not image.getexif()
    assert len(data) < 10_000
