import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from xray_pneumonia.evaluation.calibration import COLDEST, Calibration, fit, reliability, translate


def overconfident(seed=0, images=4000, *, factor=3.0, bias=0.0):
    """True logits, and what a net says that exaggerates them."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0.3, 1.5, images)
    return factor * (true - bias), (rng.random(images) < expit(true)).astype(int)


def test_temperature_undoes_what_was_exaggerated_with_the_least_log_loss():
    logit, label = overconfident(images=40_000)
    found = fit(logit, label, method="temperature").temperature
    assert found == pytest.approx(3, rel=0.03)
    losses = {t: log_loss(label, expit(logit / t)) for t in found * np.array([0.97, 1, 1.03])}
    assert min(losses, key=losses.get) == found


def test_platt_equals_logistic_regression():
    logit, label = overconfident(bias=0.7)
    found = fit(logit, label, method="platt")
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(logit[:, None], label)
    assert 1 / found.temperature == pytest.approx(reference.coef_[0, 0], rel=0.01)  # his targets are smoothed
    assert found.bias == pytest.approx(reference.intercept_[0], abs=0.02)


def test_separable_classes_have_an_answer():
    logit, label = np.array([-3.0, -2.0, 2.0, 3.0]), np.array([0, 0, 1, 1])
    for method in ("temperature", "platt"):  # Platt's targets: 3/4 and 1/4
        assert expit(fit(logit, label, method=method).logits(logit)) == pytest.approx(
            [0.25, 0.25, 0.75, 0.75], abs=0.06
        )


def test_the_bias_is_that_of_the_slope_at_its_bound():
    label = np.repeat([0, 1], 2000)
    logit = (label - 0.5) * 0.1 + 7  # the best slope is about 150
    found = fit(logit, label, method="platt")
    assert found.temperature == pytest.approx(COLDEST)
    assert expit(found.logits(logit)).mean() == pytest.approx(0.5, abs=0.01)


def test_evidence_is_shown_at_any_prevalence_and_older_maps_name_theirs():
    old = Calibration(2.0, 0.5)
    named = old.naming(0.74)
    assert named.logits([4.0]) == pytest.approx(old.logits([4.0]))
    assert named.naming(0.1) == named
    odds = np.exp(named.evidence([4.0])) * 0.05 / 0.95
    assert expit(named.at(0.05).logits([4.0])) == pytest.approx(odds / (1 + odds))
    assert translate(0.54, prevalence=0.4, to=0.05) == pytest.approx(0.085, abs=5e-4)


def test_none_changes_nothing():
    assert fit([1.0, -1.0], [1, 0], method="none") == Calibration()
    assert Calibration(2.0, 0.5).logits([4.0]) == [2.5]


def test_reliability_by_hand():
    table = pd.DataFrame(
        {"probability": [0.05, 0.05, 0.95, 1.0], "label": [0, 1, 1, 1], "patient": ["a", "a", "b", "c"]}
    )
    bins = reliability(table)
    assert bins["frequency"].tolist() == [0.5, 1.0]
    assert bins["probability"].tolist() == pytest.approx([0.05, 0.975])
    assert bins["images"].tolist() == [2, 2]
    assert bins["patients"].tolist() == [1, 2]
    assert (bins["low"] <= bins["frequency"]).all()
