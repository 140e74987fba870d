"""Metrics against scikit-learn; what is undefined is NaN."""

import math
import subprocess
import sys

import numpy as np
import pytest
from sklearn import metrics as reference

from xray_pneumonia.evaluation.epoch_metrics import NAMES, classification_metrics


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_equal_to_scikit_learn(seed, threshold):
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, rng.integers(0, 2, 200)]
    logits = np.round(rng.normal(labels - 0.5, 2), 1)  # with ties
    scores = 1 / (1 + np.exp(-logits))
    called = scores >= threshold
    found = classification_metrics(logits, labels, threshold=threshold)
    expected = {
        "accuracy": reference.accuracy_score(labels, called),
        "auroc": reference.roc_auc_score(labels, scores),
        "average_precision": reference.average_precision_score(labels, scores),
        "sensitivity": reference.recall_score(labels, called),
        "specificity": reference.recall_score(labels, called, pos_label=0),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, called),
    }
    assert found == pytest.approx(expected, abs=1e-9)
    assert set(found) == set(NAMES)


def test_by_hand():
    found = classification_metrics(np.array([-3.0, 1.0, -1.0, 2.0]), np.array([0, 0, 1, 1]))
    assert found["accuracy"] == found["sensitivity"] == found["specificity"] == 0.5
    assert found["auroc"] == 0.75


@pytest.mark.parametrize(("label", "undefined"), [(0, "sensitivity"), (1, "specificity")])
def test_one_class(label, undefined):
    found = classification_metrics(np.array([0.3, -2.0]), np.array([label, label]))
    assert {name for name, value in found.items() if math.isnan(value)} == {
        "auroc",
        "average_precision",
        "balanced_accuracy",
        undefined,
    }


@pytest.mark.parametrize("logits", [[], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_nothing_is_said_of_nothing(logits):
    found = classification_metrics(np.array(logits), np.array([0, 1][: len(logits)]))
    assert all(math.isnan(value) for value in found.values())


def test_certain_logits_do_not_tie():
    logits = np.array([37.0, 38.0, 39.0, 40.0], np.float32)
    assert classification_metrics(logits, np.array([0, 0, 1, 1]))["auroc"] == 1.0


def test_training_steps_do_not_wait_for_scikit_learn():
    code = "import sys, xray_pneumonia.evaluation.epoch_metrics; print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
