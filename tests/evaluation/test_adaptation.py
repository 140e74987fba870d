"""What is fitted to films of another hospital, and that no film is read by what was fitted on it."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from xray_pneumonia.evaluation.adaptation import cross_fit, gain, measure, patients_needed
from xray_pneumonia.evaluation.intervals import wilson
from xray_pneumonia.evaluation.settings import EvaluationSettings

SETTINGS = EvaluationSettings(
    operating_point="middle", calibration="platt", max_error=0.02, out_of_fold=[], replicates=100, prevalences=[],
    subgroups=[], maps=0, robustness_images=0, report=False, seed=0,
)  # fmt: skip


def make_films(count):
    rng = np.random.default_rng(0)
    label = np.arange(count) % 2
    names = [f"{row}.png" for row in range(count)]
    known = {"id": names, "patient": names, "subtype": "unknown", "label": label, "fold": np.arange(count) // 2 % 4}
    return pd.DataFrame(known).assign(upright=rng.uniform(0.1, 1, count), hint=rng.normal(size=count))


def reading(films, *, skill):
    """Read what was left out with some skill, and know by heart what was not."""

    def read(left_out):
        by_heart = ~films["fold"].isin(left_out)
        sign = 2 * films["label"] - 1
        logit = films["hint"] + skill * sign
        return pd.DataFrame({"logit": logit.where(~by_heart, 50 * sign), "distance": 1.0 + by_heart}, films.index)

    return read


@pytest.mark.parametrize("precision", [0.1, 0.15, 0.3])
def test_the_number_needed_is_the_least_with_so_narrow_an_interval(precision):
    needed = patients_needed(precision)
    half = [(high - low) / 2 for low, high in (wilson(n / 2, n) for n in (needed, needed - 1))]
    assert half[0] <= precision < half[1]


def test_a_model_without_skill_answers_nothing_although_it_knows_by_heart_what_it_was_fitted_on():
    films = make_films(200)
    fitted = cross_fit(reading(films, skill=0.0), films, SETTINGS, nets=True)
    assert abs(roc_auc_score(films["label"], fitted.answers["margin"]) - 0.5) < 0.1
    assert not fitted.answers["answered"].any()
    assert set(fitted.rule.decision.band.answer(np.linspace(0, 1, 11))) == {"look closer"}
    assert fitted.rule.decision.promise["bound"] > 0.3


def test_a_model_with_skill_answers_and_keeps_the_promised_error():
    films = make_films(600)
    answers = cross_fit(reading(films, skill=2.5), films, SETTINGS, nets=True).answers
    before = answers.assign(logit=films["hint"], probability=0.5 + 0.01 * np.tanh(films["hint"]), threshold=0.5)
    found = measure("finetune", answers, SETTINGS, threshold=0.5, before=before)
    assert found.answered.value > 0.5
    assert found.error.value <= 0.02
    assert {one.name for one in found.against if one.p_value < 0.05} >= {"auroc", "sensitivity", "specificity"}
    assert gain(answers, before)[0].low > 0.2
