import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta

from xray_pneumonia.evaluation.abstention import (
    ANSWERS,
    Band,
    count_answers,
    design_effect,
    fit_promise,
    is_certified,
    trade_off,
)


def table(seed, images=1000, gap=2.0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, images)
    logit = rng.normal(gap * label - gap / 2, 1)
    return pd.DataFrame({"label": label, "probability": 1 / (1 + np.exp(-logit)), "patient": np.arange(images)})


def films(seed, patients=412, icc=0.3):
    """Distances from the point with hard tails, about 2.8 % wrong, up to three films of a patient that are alike."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    label = rng.integers(0, 2, patients)[patient]
    tail = rng.standard_t(4, patients)[patient] * np.sqrt(icc) + rng.standard_t(4, len(patient)) * np.sqrt(1 - icc)
    return (2 * label - 1) * 3.2 + 1.2 * tail, label, patient


def promised(seed, max_error=0.02, **kwargs):
    return fit_promise(*films(seed, **kwargs), max_error=max_error)


def test_answers_by_hand():
    expected = ["normal", "look closer", "look closer", "look closer", "pneumonia"]
    assert Band(0.3, 0.7).answer([0.1, 0.3, 0.5, 0.7, 0.9]).tolist() == expected
    assert Band(0.5, 0.5).answer([0.49, 0.5]).tolist() == ["normal", "pneumonia"]
    assert Band.around(0.8, 0.0) == Band(0.8, 0.8)
    low, high = (np.log(p / (1 - p)) for p in vars(Band.around(0.8, 1.5)).values())
    assert [low, high] == pytest.approx([np.log(4) - 1.5, np.log(4) + 1.5])


@pytest.mark.parametrize("icc", [0.3, 0.6])
def test_the_promise_is_kept_in_all_but_a_twentieth_of_the_tables(icc):
    """300 tables of 412 patients; the truth is judged on 200,000 images."""
    distance, label, _ = films(10**6, patients=100_000)
    wrong = (distance >= 0) != (label == 1)
    broken = certified = 0
    for seed in range(300):
        known = promised(seed, icc=icc)
        certified += is_certified(known)
        broken += is_certified(known) and wrong[np.abs(distance) >= known["margin"]].mean() > 0.02
    assert certified > 150  # and it is no empty promise
    assert broken / 300 <= 0.05 + 0.02


def test_a_promise_says_what_it_counted():
    distance, label, patient = films(3)
    known = promised(3)
    answered = np.abs(distance) >= known["margin"]
    wrong = (distance >= 0) != (label == 1)
    effect = design_effect(wrong, patient)
    errors = wrong[answered].sum() / effect
    assert known["bound"] == pytest.approx(beta.ppf(0.95, errors + 1, answered.sum() / effect - errors), rel=1e-9)
    assert (known["images"], known["patients"], known["answered"]) == (len(label), 412, answered.mean())
    assert known["answered"] > 0.7


def test_a_sample_too_small_certifies_nothing_and_says_what_holds():
    known = fit_promise(np.repeat([-5.0, 5.0], 70), np.repeat([0, 1], 70), np.arange(140), max_error=0.02)
    assert not is_certified(known)
    assert known["answered"] == pytest.approx(0.7, abs=0.31)
    assert known["bound"] == pytest.approx(beta.ppf(0.95, 1, 140))
    easy = fit_promise(np.repeat([-5.0, 5.0], 149), np.repeat([0, 1], 149), np.arange(298), max_error=0.02)
    assert is_certified(easy)
    assert easy["margin"] == 0


def test_films_of_one_patient_count_less():
    flags = np.zeros(400, bool)
    flags[:40] = True
    assert design_effect(flags, np.arange(400)) == pytest.approx(1)
    assert design_effect(flags, np.arange(400) // 4) == pytest.approx(4, rel=0.05)
    assert design_effect(np.zeros(4, bool), np.arange(4)) == 1


def test_count_answers_count_everyone():
    frame = table(1)
    counts = count_answers(frame, Band(0.2, 0.8))
    assert list(counts.columns) == list(ANSWERS)
    assert counts.to_numpy().sum() == len(frame)
    assert count_answers(frame, Band(0, 1)).loc[0].tolist() == [0, (frame["label"] == 0).sum(), 0]


def test_a_wider_margin_means_fewer_answers_and_fewer_errors():
    line = trade_off(table(0, 5000), table(1, 5000), threshold=0.5)
    assert line["coverage"].tolist() == pytest.approx(line["share"].tolist(), abs=0.02)
    assert line["accuracy"].is_monotonic_increasing
    assert trade_off(None, table(1), threshold=0.5).empty
