"""The decision: the operating point lies at 0.5, whatever the policy, and a prevalence moves probabilities alone."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.abstention import Band, Promise
from xray_pneumonia.evaluation.assessment import Decision, OutOfFold, decide
from xray_pneumonia.evaluation.calibration import Calibration
from xray_pneumonia.evaluation.threshold import choose_threshold

POLICIES = ("youden", "middle", "sensitivity:0.95", "specificity:0.95", "sensitivity:0.95@95%", "cost:5", "cost:5@5%")


def settings(policy, calibration="platt"):
    return SimpleNamespace(operating_point=policy, calibration=calibration, max_error=0.02)


@pytest.fixture(scope="module")
def validation():
    rng = np.random.default_rng(0)
    label = (rng.random(800) < 0.74).astype(int)
    return pd.DataFrame({"label": label, "logit": rng.normal(5 * label - 4, 1.5), "patient": np.arange(800) // 2})


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("method", ["platt", "temperature", "none"])
def test_a_film_is_called_pneumonia_exactly_from_one_half_on(validation, policy, method):
    decision = decide(validation, settings(policy, method))
    table = decision.calibration.apply(validation)
    before = decision.calibration.at(validation["label"].mean()).apply(validation)
    called = before["probability"] >= choose_threshold(before, policy=policy)
    assert decision.threshold == 0.5
    assert ((table["probability"] >= 0.5) == called).all()
    answers = decision.band.answer(table["probability"])
    assert set(answers[called]) <= {"pneumonia", "look closer"}
    assert set(answers[~called]) <= {"normal", "look closer"}


def test_a_prevalence_moves_probabilities_and_no_answer_and_a_cost_moves_the_point(validation):
    decision = decide(validation, settings("middle"))
    rare = decision.at(0.05)
    own, moved = (one.calibration.apply(validation)["probability"] for one in (decision, rare))
    assert ((moved >= rare.threshold) == (own >= 0.5)).all()
    assert (rare.band.answer(moved) == decision.band.answer(own)).all()
    assert moved.to_numpy() == pytest.approx(expit(decision.calibration.evidence(validation["logit"]) + np.log(5 / 95)))
    assert rare.promise == decision.promise
    costly = decision.at(0.05, cost=20)
    assert costly.threshold == pytest.approx(1 / 21)
    point = np.log(costly.threshold / (1 - costly.threshold)) - costly.calibration.offset
    assert point == pytest.approx(-np.log(20) - np.log(0.05 / 0.95))  # evidence from which a miss would cost more
    assert (costly.policy, costly.promise) == ("cost:20@5%", None)


def test_an_older_decision_cannot_be_translated():
    with pytest.raises(InputError, match="kept no prevalence"):
        Decision(Calibration(0.9, 2.3), 0.81, "middle", Band(0.5, 0.81)).at(0.05)


def test_the_margin_is_fitted_on_images_no_net_saw_where_they_are_given(validation):
    far = pd.DataFrame(
        {"label": [0, 1] * 400, "distance": [-6.0, 6.0] * 400, "patient": range(800), "net": [0, 1] * 400}
    )
    for siblings, images, folds in ((False, 800, 2), (True, 1600, 3)):  # siblings are completed by the own validation
        known: Promise | None = decide(validation, settings("middle"), out_of_fold=OutOfFold(far, siblings)).promise
        assert (known["folds"], known["images"]) == (folds, images)
        assert (known["margin"] == 0) is not siblings
    assert decide(validation, settings("middle")).promise["folds"] == 0
