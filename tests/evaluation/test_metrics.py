import math

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from xray_pneumonia.evaluation.metrics import BINS, NAMES, Measures, measure, predictive_values


def random_table(seed, *, images=200, patients=80, levels=None):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, images)
    logit = rng.normal(1.5 * label - 0.5, 1.5)
    if levels:
        logit = np.round(logit * levels) / levels
    return pd.DataFrame(
        {
            "id": [f"{i}.png" for i in range(images)],
            "patient": [f"p{p}" for p in rng.integers(0, patients, images)],
            "label": label,
            "logit": logit,
            "probability": 1 / (1 + np.exp(-logit)),
        }
    )


def reference(table, threshold, weight=None):
    y, p, w = table["label"], table["probability"], weight
    called = (p >= threshold).astype(int)
    tn, _, fn, _ = sk.confusion_matrix(y, called, sample_weight=w).ravel()
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    w = np.ones(len(y)) if w is None else w
    gaps = [abs(np.sum((w * (y - p))[bins == b])) for b in range(BINS)]
    return {
        "auroc": sk.roc_auc_score(y, p, sample_weight=w),
        "average_precision": sk.average_precision_score(y, p, sample_weight=w),
        "accuracy": sk.accuracy_score(y, called, sample_weight=w),
        "balanced_accuracy": sk.balanced_accuracy_score(y, called, sample_weight=w),
        "sensitivity": sk.recall_score(y, called, sample_weight=w),
        "specificity": sk.recall_score(y, called, pos_label=0, sample_weight=w),
        "ppv": sk.precision_score(y, called, sample_weight=w),
        "npv": tn / (tn + fn),
        "f1": sk.f1_score(y, called, sample_weight=w),
        "brier": sk.brier_score_loss(y, p, sample_weight=w),
        "log_loss": sk.log_loss(y, p, sample_weight=w),
        "calibration_error": sum(gaps) / w.sum(),
    }


@pytest.mark.parametrize(("seed", "levels"), [(0, None), (1, 2), (2, 10), (3, None)])
def test_equal_to_scikit_learn(seed, levels):
    table = random_table(seed, levels=levels)
    expected = reference(table, 0.4)
    found = measure(table, threshold=0.4).once()
    assert set(found) == set(NAMES) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


def test_weights_are_those_of_scikit_learn():
    table = random_table(5, levels=3)
    measures = measure(table, threshold=0.5)
    weights = np.random.default_rng(0).integers(0, 4, (7, measures.patients)).astype(float)
    found = measures(weights)
    for row, weight in enumerate(weights):
        expected = reference(table, 0.5, weight[measures.codes])
        for name, value in expected.items():
            assert found[name][row] == pytest.approx(value, abs=1e-9), name


def test_by_hand():
    # four images: called are 0.9 (ill) and 0.6 (well); the ill one at 0.4 is missed
    found = Measures([1, 0, 1, 0], [0.9, 0.6, 0.4, 0.1], list("abcd"), threshold=0.5).once()
    assert found["sensitivity"] == found["specificity"] == found["ppv"] == found["npv"] == 0.5
    assert found["auroc"] == 0.75
    assert found["average_precision"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert found["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.01) / 4)
    assert found["calibration_error"] == pytest.approx((0.1 + 0.6 + 0.6 + 0.1) / 4)


def test_undefined_is_nan():
    only_ill = Measures([1, 1], [0.9, 0.8], ["a", "b"], threshold=0.5).once()
    assert all(math.isnan(only_ill[name]) for name in ("auroc", "average_precision", "specificity", "npv"))
    assert only_ill["sensitivity"] == 1
    never_called = Measures([1, 0], [0.3, 0.2], ["a", "b"], threshold=0.5).once()
    assert math.isnan(never_called["ppv"])
    assert never_called["sensitivity"] == 0


def test_certain_probabilities_do_not_cost_infinity():
    found = Measures([1, 0], [0.0, 1.0], ["a", "b"], threshold=0.5).once()
    assert found["log_loss"] == pytest.approx(sk.log_loss([1, 0], [0.0, 1.0]), abs=1e-9)
    assert found["auroc"] == 0


def test_predictive_values_follow_bayes():
    ppv, npv = predictive_values(0.9, 0.8, prevalence=0.2)
    assert ppv == pytest.approx(0.18 / (0.18 + 0.16))
    assert npv == pytest.approx(0.64 / (0.64 + 0.02))
    assert np.isnan(predictive_values(0.0, 1.0, prevalence=0.2)[0])
