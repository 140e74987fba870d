"""The calibration error beside what chance gives it; slope and intercept against their definition."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from xray_pneumonia.evaluation.calibration import translate
from xray_pneumonia.evaluation.calibration_check import check_calibration
from xray_pneumonia.evaluation.metrics import table_metrics


def drawn(seed, *, images=800, slope=1.0, shift=0.0, each=2):
    rng = np.random.default_rng(seed)
    truth = rng.normal(0.8, 2.5, images)
    label = (rng.random(images) < 1 / (1 + np.exp(-truth))).astype(int)
    logit = truth / slope - shift
    frame = {"label": label, "logit": logit, "patient": np.arange(images) // each}
    return pd.DataFrame(frame | {"probability": 1 / (1 + np.exp(-logit))})


def test_a_calibrated_model_has_no_excess():
    checks = [check_calibration(drawn(seed), seed=0) for seed in range(60)]
    assert abs(np.mean([one.excess for one in checks])) < 0.001
    assert np.mean([one.floor for one in checks]) > 0.015
    assert checks[0].error == pytest.approx(table_metrics(drawn(0), threshold=0.5)["calibration_error"], abs=1e-12)


def test_a_prevalence_weighs_the_images_and_costs_no_calibration():
    """Evidence shown at 5 % ill on images of which 60 % are: as calibrated as at their own share."""
    own, moved = [], []
    for seed in range(30):
        table = drawn(seed)
        share = table["label"].mean()
        rare = table.assign(probability=translate(table["probability"], prevalence=share, to=0.05))
        own.append(check_calibration(table, seed=0))
        moved.append(check_calibration(rare, seed=0, prevalence=0.05))
    assert abs(np.mean([one.excess for one in moved])) < 0.002
    assert moved[0].slope.value == pytest.approx(own[0].slope.value)
    assert moved[0].intercept.value == pytest.approx(own[0].intercept.value)
    assert (moved[0].prevalence, moved[0].share) == (0.05, drawn(0)["label"].mean())
    weighted = table_metrics(rare, threshold=0.5, prevalence=0.05)
    assert moved[-1].error == pytest.approx(weighted["calibration_error"], abs=1e-12)
    assert check_calibration(rare, seed=0).error > 0.2  # judged at the wrong prevalence
    assert table_metrics(rare, threshold=0.5)["sensitivity"] == weighted["sensitivity"]


def test_slope_and_intercept_are_those_of_logistic_regression():
    table = drawn(1, slope=0.5, shift=0.7)
    found = check_calibration(table, seed=0)
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(table[["logit"]], table["label"])
    assert found.slope.value == pytest.approx(reference.coef_[0, 0], rel=1e-3)
    assert found.slope.low < 0.5 < found.slope.high < 1
    assert found.intercept.low > 0  # with the slope at 1, probabilities are too low
    tail = 1 / (1 + np.exp(-(table["logit"] + found.intercept.value)))
    assert tail.mean() == pytest.approx(table["label"].mean(), abs=1e-8)
    doubled = check_calibration(pd.concat([table] * 2), seed=0).slope  # every image twice tells nothing new
    assert doubled.high - doubled.low == pytest.approx(found.slope.high - found.slope.low, rel=1e-6)


def test_what_cannot_be_fitted_says_so():
    table = drawn(2).assign(logit=lambda t: 4.0 * t["label"] - 2 + np.linspace(0, 1, len(t)))
    table["probability"] = 1 / (1 + np.exp(-table["logit"]))
    found = check_calibration(table, seed=0)
    assert (str(found.slope), found.slope.basis) == ("undefined", "the classes do not overlap")
    alone = check_calibration(drawn(3, images=40, each=40), seed=0)
    assert np.isnan([alone.slope.low, alone.intercept.low]).all()
