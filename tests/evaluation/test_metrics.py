"""Metrics against scikit-learn and by hand; what is undefined is NaN."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.metrics import (
    BINS,
    EPOCH_METRICS,
    METRICS,
    MONITORED,
    WeightedMetrics,
    epoch_metrics,
    monitor_mode,
    predictive_values,
    table_metrics,
)


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


def metrics_of(label, probability):
    """Compute the metrics at 0.5 of images of different patients."""
    called = np.asarray(probability) >= 0.5
    score = np.asarray(probability, float)
    return WeightedMetrics(label, score, np.arange(len(score)), called=called, score=score).once()


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
    found = table_metrics(table, threshold=0.4)
    assert set(found) == set(METRICS) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


def test_weights_are_those_of_scikit_learn():
    table = random_table(5, levels=3)
    measures = WeightedMetrics.of(table, threshold=0.5)
    weights = np.random.default_rng(0).integers(0, 4, (7, measures.patients)).astype(float)
    found = measures(weights)
    for row, weight in enumerate(weights):
        expected = reference(table, 0.5, weight[measures.codes])
        for name, value in expected.items():
            assert found[name][row] == pytest.approx(value, abs=1e-9), name


def test_by_hand():
    # four images: called are 0.9 (ill) and 0.6 (well); the ill one at 0.4 is missed
    found = metrics_of([1, 0, 1, 0], [0.9, 0.6, 0.4, 0.1])
    assert found["sensitivity"] == found["specificity"] == found["ppv"] == found["npv"] == 0.5
    assert found["auroc"] == 0.75
    assert found["average_precision"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert found["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.01) / 4)
    assert found["calibration_error"] == pytest.approx((0.1 + 0.6 + 0.6 + 0.1) / 4)


def test_undefined_is_nan():
    only_ill = metrics_of([1, 1], [0.9, 0.8])
    assert all(math.isnan(only_ill[name]) for name in ("auroc", "average_precision", "specificity", "npv"))
    assert only_ill["sensitivity"] == 1
    never_called = metrics_of([1, 0], [0.3, 0.2])
    assert math.isnan(never_called["ppv"])
    assert never_called["sensitivity"] == 0


def test_certain_probabilities_do_not_cost_infinity():
    found = metrics_of([1, 0], [0.0, 1.0])
    assert found["log_loss"] == pytest.approx(sk.log_loss([1, 0], [0.0, 1.0]), abs=1e-9)
    assert found["auroc"] == 0


def test_predictive_values_follow_bayes():
    ppv, npv = predictive_values(0.9, 0.8, prevalence=0.2)
    assert ppv == pytest.approx(0.18 / (0.18 + 0.16))
    assert npv == pytest.approx(0.64 / (0.64 + 0.02))
    assert np.isnan(predictive_values(0.0, 1.0, prevalence=0.2)[0])


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(10))
def test_epoch_metrics_equal_scikit_learn(seed, threshold):
    table = random_table(seed, levels=10)
    found = epoch_metrics(table["logit"].to_numpy(), table["label"].to_numpy(), threshold=threshold)
    expected = reference(table, threshold)
    assert found == pytest.approx({name: expected[name] for name in EPOCH_METRICS}, abs=1e-9)


def test_epoch_metrics_of_one_class_or_without_finite_logits_are_undefined():
    for label, name in ((0, "sensitivity"), (1, "specificity")):
        found = epoch_metrics(np.array([0.3, -2.0]), np.array([label, label]))
        undefined = {"auroc", "average_precision", "balanced_accuracy", name}
        assert {name for name, value in found.items() if math.isnan(value)} == undefined
    for logits in ([], [math.nan, 1.0], [math.inf, 1.0]):
        found = epoch_metrics(np.array(logits), np.array([0, 1][: len(logits)]))
        assert all(math.isnan(value) for value in found.values())


def test_certain_logits_do_not_tie():
    logits = np.array([37.0, 38.0, 39.0, 40.0], np.float32)
    assert epoch_metrics(logits, np.array([0, 0, 1, 1]))["auroc"] == 1.0


def test_what_is_monitored_and_in_which_direction():
    assert set(MONITORED) == {"val/loss", *(f"val/{name}" for name in EPOCH_METRICS)}
    assert (monitor_mode("val/loss"), monitor_mode("val/auroc", "max")) == ("min", "max")
    with pytest.raises(InputError, match="mode=max: would keep the epoch with the most monitor=val/loss"):
        monitor_mode("val/loss", "max")
    with pytest.raises(InputError, match="monitor=val/brier: no such metric"):
        monitor_mode("val/brier")
