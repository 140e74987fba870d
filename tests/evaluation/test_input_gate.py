import numpy as np
import pytest
from PIL import Image

from xray_pneumonia.data import synthetic
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.input_gate import (
    FLAGS,
    SIDE,
    Gate,
    fit_gate,
    out_of_distribution,
    quality_flags,
    thumbnails,
)


@pytest.fixture(scope="module")
def films():
    drawn = [synthetic.draw(patient, 0) for patient in synthetic.draw_patients(320, 0)]
    pixels = [Image.fromarray((one * 255).astype(np.uint8)).resize((64, 64)) for one in drawn]
    return np.stack([np.asarray(one) for one in pixels])


@pytest.fixture(scope="module")
def gate(films):
    return fit_gate(films[:180], films[180:256])


def test_films_pass_and_strangers_do_not(films, gate):
    assert gate.passes(films[256:]).mean() > 0.9
    stopped = {
        name: 1 - gate.passes(strange).mean() for name, strange in out_of_distribution(films[256:], seed=0).items()
    }
    assert len(stopped) == 8
    assert min(stopped.values()) > 0.8, stopped


def test_brightness_and_contrast_tell_nothing(films):
    darker = (films * 0.5 + 20).astype(np.uint8)
    assert thumbnails(darker) == pytest.approx(thumbnails(films), abs=0.15)
    assert thumbnails(films).shape == (len(films), SIDE * SIDE)


def test_a_gate_survives_the_file(films, gate, tmp_path):
    gate.write(tmp_path / "gate.npz")
    assert (Gate.read(tmp_path / "gate.npz").scores(films) == gate.scores(films)).all()


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "gate.npz").write_bytes(b"no gate")
    with pytest.raises(InputError, match="is no gate"):
        Gate.read(tmp_path / "gate.npz")


def test_strangers_are_seeded(films):
    one, two = out_of_distribution(films[:5], seed=1), out_of_distribution(films[:5], seed=1)
    assert all((one[name] == two[name]).all() for name in one)


def test_images_are_not_flagged_and_what_was_done_to_them_is(films, gate):
    films = films[180:256]
    plain = quality_flags(films, gate.scores(films), gate)
    assert sum(map(bool, plain)) <= 2
    for wrong, name in (
        (255 - films, "inverted"),
        (np.ascontiguousarray(np.rot90(films, axes=(1, 2))), "turned"),
    ):
        found = quality_flags(wrong, gate.scores(wrong), gate)
        assert np.mean([{"outside_training_range", name} <= set(flags) for flags in found]) > 0.7
    assert all(name in FLAGS for flags in found for name in flags)


def test_little_contrast_and_a_missing_gate_are_flagged(films):
    flat = (films[:1] // 32 + 100).astype(np.uint8)
    assert quality_flags(np.concatenate([flat, films[:1]]), np.full(2, np.nan), None) == [
        ["low_information", "not_checked"],
        ["not_checked"],
    ]
