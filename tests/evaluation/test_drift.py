"""Whether films as a whole are those of the model's home: rates of false and true alarms on drawn scores."""

import numpy as np
import pandas as pd
import pytest

from xray_pneumonia.evaluation.drift import DIFFERENT, FEWEST, LEVEL, Home, compare_with_home, describe


def films(rng, count, *, shift=0.0, ill=0.7):
    """Draw films; those called PNEUMONIA score higher, as with real ones."""
    called = (rng.random(count) < ill).astype(int)
    score = 0.5 * np.exp(rng.normal(0.2 * called + shift, 0.3))
    return pd.DataFrame({"gate_score": score, "called": called, "brightness": 120.0, "side": 224})


@pytest.fixture(scope="module")
def home():
    return Home.of(films(np.random.default_rng(0), 800))


@pytest.mark.parametrize(("shift", "ill", "low", "high"), [(0, 0.7, 0, LEVEL), (0, 0, 0, LEVEL), (0.6, 0.3, 0.95, 1)])
@pytest.mark.parametrize("count", [FEWEST, 60])
def test_films_of_home_are_not_called_different_whatever_their_prevalence(home, count, shift, ill, low, high):
    rng = np.random.default_rng(1)
    rate = np.mean(
        [
            compare_with_home(films(rng, count, shift=shift, ill=ill), home, positive="PNEUMONIA").differs
            for _ in range(300)
        ]
    )
    assert low <= rate <= high


def test_the_words_say_n_and_what_lies_beside(home):
    one, other, *few = compare_with_home(
        films(np.random.default_rng(2), 50, shift=2), home, positive="PNEUMONIA"
    ).sentences()
    assert one == DIFFERENT
    assert "50 films" in other
    assert "n = 50" in other
    assert "longer side 224 (validation 224 to 224)" in few[0]
    few = compare_with_home(films(np.random.default_rng(2), FEWEST - 1, shift=2), home, positive="ILL")
    assert not few.differs
    assert "too few" in few.sentences()[0]


def test_a_patients_films_count_once(home):
    table = films(np.random.default_rng(3), 60, shift=2)
    many = compare_with_home(table.assign(patient=["a"] * 52 + list("bcdefghi")), home, positive="ILL")
    assert (many.films, many.units, many.differs) == (60, 9, False)


def test_films_are_described_by_their_answers_files_and_pixels():
    table = pd.DataFrame({"gate_score": [1, 2], "probability": [0.4, 0.5], "width": [5, 3], "height": [4, 9]})
    found = describe(table, np.array([[[0, 2]], [[4, 4]]], np.uint8), threshold=0.5)
    assert found[["called", "side", "brightness"]].to_numpy().tolist() == [[0, 5, 1], [1, 9, 4]]
    assert np.isnan(
        Home.of(describe(table[["gate_score", "probability"]], np.zeros((2, 1, 1)), threshold=0.5)).side
    ).all()
