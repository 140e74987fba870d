"""A model of own classes, from class folders to its answers: one training, everything read from it."""

import csv
import json
import re
import shutil

import numpy as np
import pytest

CLASSES = ["data.positive=[Tuberculosis]", "data.negative=[normal, healthy]"]


@pytest.fixture(scope="module")
def films(xrays, tmp_path_factory):
    """The generated X-rays under other names, with a third class beside them."""
    root = tmp_path_factory.mktemp("own")
    for split in ("train", "test"):
        shutil.copytree(xrays / split / "NORMAL", root / split / "Normal")
        shutil.copytree(xrays / split / "PNEUMONIA", root / split / "TUBERCULOSIS")
    (root / "train" / "covid").mkdir()
    (root / "train" / "covid" / "a.jpeg").write_bytes(b"no image, and never opened")
    return root


def test_own_classes_from_folders_to_answers(xray, films, tiny, home, xrays, tmp_path):
    overrides = [*tiny[1:], f"data.root={films}", *CLASSES]
    outcome = xray(
        "train",
        *overrides,
        "evaluation=training",
        "evaluation.replicates=100",
        "trainer.max_epochs=1",
        "data.split=bright",
    )
    assert outcome.code == 0, outcome.err
    assert "1 images are neither normal or healthy nor Tuberculosis" in outcome.err
    run_id, place = outcome.run_id, f"home={home}"
    page = next(home.glob(f"**/{run_id}/**/report.html")).read_text()
    assert "chest films with Tuberculosis" in page
    assert "left out, of neither class: 1 covid" in page
    assert "<td>held out of the training: bright</td>" in page
    assert "<td>all of them</td>" in page
    assert not re.findall(r".{30}(?<!xray[_-])pneumonia.{30}", page, re.IGNORECASE)

    outcome = xray(
        "predict", f"model={run_id}", f"input={films}/test", "output=out", place, "workers=1", "explain=false"
    )
    assert outcome.code == 0, outcome.err
    assert "speaks for Tuberculosis" in outcome.out
    rows = list(csv.DictReader((tmp_path / "out/predictions.csv").open()))
    assert {row["label"] for row in rows} <= {"Tuberculosis", "normal or healthy"}
    assert {row["decision"] for row in rows} <= {"Tuberculosis", "normal or healthy", "look closer"}
    assert "Tuberculosis" in (tmp_path / "out/contact_sheet.html").read_text()

    evaluate = ["evaluate", f"run_id={run_id}", "split=external", place, "evaluation=quick"]
    outcome = xray(*evaluate, f"data.root={xrays}")
    assert outcome.code == 2
    assert "no images of Tuberculosis; expected the classes normal or healthy and Tuberculosis, found" in outcome.err
    outcome = xray(*evaluate, f"data.root={xrays}", "data.positive=[pneumonia]")
    assert outcome.code == 0, outcome.err
    assert "Positive: Tuberculosis; negative: normal or healthy." in outcome.out
    outcome = xray(*evaluate, f"data.root={films}", "compare_to=final")
    assert outcome.code == 2
    assert "compare_to: answers another question (NORMAL and PNEUMONIA)" in outcome.err


def test_served_answers_and_cards_have_the_models_own_names(bundle):
    from xray_pneumonia.inference.loading import load_model

    folder = bundle(3, class_names=["bacteria", "virus"])
    model = load_model(folder, name="it")
    table = model.decide(np.random.default_rng(0).integers(0, 256, (20, 32, 32)).astype(np.uint8))
    assert set(table["label"]) <= {"bacteria", "virus"}
    assert set(table["answer"]) <= {"bacteria", "virus", "look closer"}
    card = json.loads((folder / "model.json").read_text())
    assert card["class_names"] == ["bacteria", "virus"]
