import numpy as np
import pandas as pd
import pytest

from xray_pneumonia.evaluation.abstention import ANSWERS, Band, count_answers, fit_band, trade_off


def table(seed, images=1000, gap=2.0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, images)
    logit = rng.normal(gap * label - gap / 2, 1)
    return pd.DataFrame({"label": label, "probability": 1 / (1 + np.exp(-logit)), "patient": np.arange(images)})


def test_answers_by_hand():
    expected = ["normal", "look closer", "look closer", "look closer", "pneumonia"]
    assert Band(0.3, 0.7).answer([0.1, 0.3, 0.5, 0.7, 0.9]).tolist() == expected
    assert Band(0.5, 0.5).answer([0.49, 0.5]).tolist() == ["normal", "pneumonia"]


@pytest.mark.parametrize("error", [0.02, 0.1])
def test_the_promise_is_kept_on_new_images(error):
    """Split conformal prediction: over many draws either class gets the other's answer in at most `error`."""
    wrong = np.zeros((80, 2))
    for seed in range(80):
        band = fit_band(table(seed, 400), error=error, threshold=0.5)
        counts = count_answers(table(10_000 + seed), band)
        shares = counts.div(counts.sum(axis=1), axis=0)
        wrong[seed] = shares.loc[0, "pneumonia"], shares.loc[1, "normal"]
    means, spread = wrong.mean(axis=0), wrong.std(axis=0) / np.sqrt(80)
    assert (means <= error + 3 * spread).all()
    assert (means >= error / 3).all()  # and it is no empty promise


def test_classes_far_apart_close_the_band_and_too_few_images_open_it():
    assert fit_band(table(0, gap=14), error=0.05, threshold=0.5) == Band(0.5, 0.5)
    assert fit_band(table(0, 20), error=0.01, threshold=0.5) == Band(0, 1)


@pytest.mark.parametrize("gap", [2, 14])
@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.5, 0.7, 0.99])
def test_no_answer_contradicts_the_operating_point(gap, threshold):
    chances = np.linspace(0, 1, 201)
    answers = fit_band(table(0, gap=gap), error=0.1, threshold=threshold).answer(chances)
    assert set(answers[chances >= threshold]) <= {"pneumonia", "look closer"}
    assert set(answers[chances < threshold]) <= {"normal", "look closer"}


def test_count_answers_count_everyone():
    frame = table(1)
    counts = count_answers(frame, Band(0.2, 0.8))
    assert list(counts.columns) == list(ANSWERS)
    assert counts.to_numpy().sum() == len(frame)
    assert count_answers(frame, Band(0, 1)).loc[0].tolist() == [0, (frame["label"] == 0).sum(), 0]


def test_less_error_means_fewer_answers():
    line = trade_off(table(0, 5000), table(1, 5000), threshold=0.5)
    assert line["coverage"].is_monotonic_decreasing
    assert line["accuracy"].iloc[-1] > line["accuracy"].iloc[0]
