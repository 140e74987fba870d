"""The package from Python: five lines in a notebook."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import xray_pneumonia as xray
from xray_pneumonia.data.images.decode import decode


@pytest.fixture(scope="module")
def model():
    return xray.load("final")


@pytest.fixture(scope="module")
def film(xrays: Path) -> Path:
    return next(xrays.rglob("*.jpeg"))


def test_importing_it_is_light():
    code = "import sys, xray_pneumonia; assert not {'torch', 'numpy', 'hydra', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_path_bytes_and_an_array_get_the_same_answer(model, film, tmp_path):
    with Image.open(film) as image:
        gray = np.asarray(image.convert("L"))
    Image.fromarray(gray).save(tmp_path / "same.png")  # libjpeg shrinks a JPEG itself, so a PNG is an array's like
    *jpeg, png, array, fractions = model.predict(
        [film, str(film), film.read_bytes(), tmp_path / "same.png", gray, gray / 255]
    )
    expected = model.trained.decide(decode(film.read_bytes(), 128).pixels[None]).iloc[0]
    for answers in (jpeg, [png, array, fractions]):
        assert [one.probability for one in answers] == pytest.approx([answers[0].probability] * 3, abs=1e-6)
    assert jpeg[0].probability == pytest.approx(expected["probability"], abs=1e-6)
    assert (jpeg[0].label, jpeg[0].decision) == (expected["label"], expected["answer"])


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (b"text", "not_an_image"),
        ("no/such/file.png", "unreadable"),
        (np.full((9, 9), np.nan), "unsupported_mode"),
        (np.ones((4, 4, 4, 4)), "not_an_image"),
        (np.full((50, 50), -1), "unsupported_mode"),
    ],
)
def test_what_cannot_be_read_says_why(model, film, given, error):
    bad, good = model.predict([given, film])
    assert (bad.error, bad.probability, bad.label, bad.decision) == (error, None, "", "look closer")
    assert bad.message
    assert good.error == ""


def test_a_heat_map_has_the_films_shape(model, film):
    drawn = model.explain(film)
    with Image.open(film) as shape:
        assert drawn.width / drawn.height == pytest.approx(shape.width / shape.height, abs=0.02)
    with pytest.raises(ValueError, match="not_an_image"):
        model.explain(b"text")


def test_training_returns_its_run_and_its_model_loads(tiny, home, capsys):
    run = xray.train(*tiny)
    assert run.metrics["val/auroc"] == pytest.approx(float(capsys.readouterr().out.split("auroc=")[-1]), abs=1e-6)
    assert run.config["model"]["width"] == 4
    assert xray.load(run.run_id, f"home={home}").trained.card.run_id == run.run_id
    with pytest.raises(Exception, match="nonsense"):
        xray.train("nonsense=1")
    with pytest.raises(ValueError, match="command line"):
        xray.train("-m", "seed=0,1")
