import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from xray_pneumonia.evaluation.abstention import Band
from xray_pneumonia.evaluation.assessment import Decision
from xray_pneumonia.evaluation.calibration import Calibration
from xray_pneumonia.evaluation.gradcam import choose_cases
from xray_pneumonia.evaluation.robustness import CLEAN, KINDS, STRENGTHS, corrupt, robustness, sample
from xray_pneumonia.evaluation.shortcuts import rim, shortcuts

DECISION = Decision(Calibration(), 0.5, "youden", Band(0.5, 0.5))


def films(count=40, seed=0):
    """Smooth pictures, the ill ones brighter in the middle."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    label = np.arange(count) % 2
    middle = np.exp(-(x**2 + y**2) / 0.1)
    bright = 90 + 60 * label[:, None, None] * middle + 20 * np.sin(5 * x + rng.uniform(0, 6, (count, 1, 1)))
    pixels = np.clip(bright + rng.normal(0, 3, bright.shape), 0, 255).astype(np.uint8)
    table = pd.DataFrame({"id": [f"{i:03}" for i in range(count)], "patient": np.arange(count) // 2, "label": label})
    return table.assign(patient=np.arange(count) // 4 * 2 + label), pixels


def looks_at_the_middle(images):
    return images[:, 26:38, 26:38].mean(axis=(1, 2)) / 10 - 11.0


@pytest.mark.parametrize("kind", KINDS)
def test_corruptions_are_seeded_and_grow(kind):
    _, images = films()
    made = {strength: corrupt(images, kind=kind, strength=strength, seed=1) for strength in STRENGTHS}
    assert all(one.dtype == np.uint8 and one.shape == images.shape for one in made.values())
    assert (made[3] == corrupt(images, kind=kind, strength=3, seed=1)).all()
    assert (made[3][:2] == corrupt(images[:2], kind=kind, strength=3, seed=1)).all()
    change = [np.abs(made[strength].astype(int) - images).mean() for strength in STRENGTHS]
    assert change[2] > 0
    assert change[-1] > change[0]


def test_the_table_judges_every_corruption():
    table, images = films()
    logits = looks_at_the_middle(images)
    table = table.assign(logit=logits, probability=1 / (1 + np.exp(-logits)))
    found = robustness(table, images, DECISION, predict=looks_at_the_middle, seed=0)
    assert len(found) == 1 + len(KINDS) * len(STRENGTHS)
    assert found.loc[0, "kind"] == CLEAN
    assert found.loc[0, "auroc"] == pytest.approx(roc_auc_score(table["label"], logits), abs=1e-9)
    moved = corrupt(images, kind="shift", strength=5, seed=0)
    row = found[(found["kind"] == "shift") & (found["strength"] == 5)].iloc[0]
    assert row["auroc"] == pytest.approx(roc_auc_score(table["label"], looks_at_the_middle(moved)), abs=1e-9)


def test_a_sample_holds_both_classes():
    table, _ = films(100)
    rows = sample(table, images=10, seed=0)
    assert table["label"].iloc[rows].mean() == 0.5
    assert (sample(table, images=None, seed=0) == np.arange(100)).all()


def test_shortcuts_find_what_the_border_tells():
    table, images = films(80)
    told = shortcuts(table, images)
    images = images.copy()
    images[table["label"] == 1, :4, :] = 250
    marked = shortcuts(table, images)
    assert marked["border alone"].value > 0.95
    assert told["border alone"].value < 0.85
    assert rim(images).shape == (80, 112)
    with_sizes = shortcuts(table.assign(width=100 + 50 * table["label"], height=100), images)
    assert with_sizes["size of the file's image"].value == 1
    assert shortcuts(*films(12)) == {}  # too few patients


def test_cases_are_the_most_and_least_certain_one_a_patient():
    table = pd.DataFrame(
        {
            "id": list("abcdefg"),
            "patient": ["p", "p", "q", "r", "s", "t", "u"],
            "label": [1, 1, 1, 0, 0, 0, 1],
            "probability": [0.99, 0.98, 0.1, 0.05, 0.8, 0.45, 0.7],
        }
    )
    found = choose_cases(table, threshold=0.5, each=1)
    expected = {"found": "a", "cleared": "d", "missed": "c", "alarmed": "e", "unsure": "f"}
    assert dict(zip(found["case"], found["id"], strict=True)) == expected
    assert not choose_cases(table, threshold=0.5, each=3)["id"].duplicated().any()
