"""The score of a recipe: its measures against scikit-learn, its mean by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import balanced_accuracy_score, log_loss

from xray_pneumonia.evaluation import robust_score
from xray_pneumonia.evaluation.abstention import Band
from xray_pneumonia.evaluation.assessment import Decision
from xray_pneumonia.evaluation.calibration import Calibration
from xray_pneumonia.evaluation.robust_score import CORRUPTED, pool, score, word

SCALES = {part: {"log_loss": [0.1, 0.02], "balanced_accuracy": [0.9, 0.01]} for part in ("plain", "virus")}


def test_measures_are_balanced_and_a_corruption_changes_its_part_alone():
    rng = np.random.default_rng(0)
    label = (np.arange(60) % 4 > 0).astype(int)
    images = rng.integers(0, 120, (60, 16, 16), np.uint8) + 60 * label[:, None, None].astype(np.uint8)
    table = pd.DataFrame({"id": np.arange(60), "patient": np.arange(60), "subtype": "", "label": label})
    predict = lambda films: (films.mean(axis=(1, 2)) - 90) / 20 + rng.normal(size=60)  # noqa: E731
    table["logit"] = predict(images)
    decision = Decision(Calibration(2.0, 0.3, 0.7), 0.5, "middle", Band(0.5, 0.5), {})
    values = robust_score.measure_validation(table, images, decision, predict=predict, seed=0)
    assert list(values)[::2] == [f"robust/{part}/log_loss" for part in ("plain", *CORRUPTED)]
    evidence = table["logit"] / 2 + 0.3
    weights = np.where(label == 1, 1 / label.sum(), 1 / (1 - label).sum())
    assert values["robust/plain/log_loss"] == pytest.approx(log_loss(label, expit(evidence), sample_weight=weights))
    called = expit(evidence + math.log(0.7 / 0.3)) >= 0.5
    assert values["robust/plain/balanced_accuracy"] == pytest.approx(balanced_accuracy_score(label, called))
    assert values["robust/exposure/log_loss"] > values["robust/jpeg/log_loss"]  # this net sees gray values alone


def test_the_score_is_the_mean_of_standardised_parts():
    trainings = [
        {"robust/plain/log_loss": 0.08, "robust/plain/balanced_accuracy": 0.91},
        {"robust/plain/log_loss": 0.12, "robust/plain/balanced_accuracy": 0.93},
        {"robust/virus/log_loss": 0.16, "robust/virus/balanced_accuracy": 0.89},
    ]
    values = pool(trainings)
    assert score(values, SCALES) == pytest.approx(((0 + 2) / 2 + (-3 - 1) / 2) / 2)
    assert word(pool(trainings[:2]), SCALES)[0] == "robust/score +1.00, the mean of 1 of 2 parts:"
    assert math.isnan(score({}, SCALES))
