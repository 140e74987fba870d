"""Whether films as a whole are those of the model's home: rates of false and true alarms on drawn scores."""

import numpy as np
import pandas as pd
import pytest

from xray_pneumonia.evaluation.drift import (
    DIFFERENT,
    FEWEST,
    LEVEL,
    SHARES,
    Drift,
    Home,
    compare_with_home,
    describe,
)


def films(rng, count, *, shift=0.0, ill=0.7, unsure=0.0):
    """Draw films; those called PNEUMONIA score higher, as with real ones; of a share the answers are unsure."""
    label = (rng.random(count) < ill).astype(int)
    evidence = np.where(rng.random(count) < unsure, rng.normal(0, 1, count), rng.normal(8 * label - 4, 1.5))
    called = (evidence >= 0).astype(int)
    score = 0.5 * np.exp(rng.normal(0.2 * called + shift, 0.3))
    known = {"label": label, "evidence": evidence, "gate_score": score, "called": called}
    return pd.DataFrame(known | {"brightness": 120.0, "side": 224})


@pytest.fixture(scope="module")
def home():
    return Home.of(films(np.random.default_rng(0), 800))


def alarms(home, count, **kind):
    """Draw many batches; returns the shares that are called different, by films, by answers, by either."""
    rng, found = np.random.default_rng(1), []
    for _ in range(25):
        drift = compare_with_home(films(rng, count, **kind), home, positive="PNEUMONIA")
        found.append([*(p < LEVEL for p in drift.corrected), drift.differs])
    return np.mean(found, axis=0)


@pytest.mark.parametrize(("count", "ill"), [(FEWEST, 0.7), (100, 0.05)])
def test_films_of_home_are_not_called_different_whatever_their_prevalence(home, count, ill):
    assert alarms(home, count, ill=ill)[2] <= LEVEL


def test_films_that_look_different_are_called_so(home):
    assert alarms(home, FEWEST, shift=0.8, ill=0.3)[0] >= 0.95


def test_answers_that_no_prevalence_explains_are_called_different_where_films_look_alike(home):
    films_differ, answers_differ, either = alarms(home, 100, unsure=0.5, ill=0.3)
    assert films_differ <= LEVEL
    assert answers_differ >= 0.9
    assert either == answers_differ


def test_the_distance_of_answers_is_kolmogorovs_and_a_patient_counts_once(home):
    table = films(np.random.default_rng(4), 40, unsure=1.0)
    drift = compare_with_home(table, home, positive="ILL")
    cuts = np.sort(table["evidence"])
    well, ill = (np.interp(cuts, one, SHARES) for one in home.evidence)
    above, below = (np.arange(40) + 1) / 40, np.arange(40) / 40
    mixed = [share * ill + (1 - share) * well for share in SHARES]
    expected = min(max(np.abs(above - one).max(), np.abs(below - one).max()) for one in mixed)
    assert drift.apart == pytest.approx(expected, abs=0.03)  # looked at where home has its quantiles
    twice = pd.concat([table.assign(patient=range(40)), table.assign(patient=range(40))], ignore_index=True)
    again = compare_with_home(twice, home, positive="ILL")
    assert (again.apart, again.p_apart) == (pytest.approx(drift.apart), pytest.approx(drift.p_apart))


def test_two_tests_share_one_error_rate_and_an_older_gate_has_one():
    def drift(*p):
        return Drift(50, 50, 800, 0.5, p[0], (), 0.1, p[1])

    assert drift(0.004, 0.5).corrected == (0.008, 0.5)
    assert drift(0.006, 0.007).corrected == (0.012, 0.012)
    assert (drift(0.004, 0.5).differs, drift(0.5, 0.006).differs, drift(0.006, np.nan).differs) == (True, False, True)
    assert "answers" not in " ".join(Drift(50, 50, 800, 0.5, 0.2, ()).sentences())


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
    found = describe(table, np.array([[[0, 2]], [[4, 4]]], np.uint8), threshold=0.5, prevalence=0.4)
    assert found[["called", "side", "brightness"]].to_numpy().tolist() == [[0, 5, 1], [1, 9, 4]]
    assert found["evidence"].to_numpy() == pytest.approx([0, np.log(0.6 / 0.4)])
    bare = describe(table[["gate_score", "probability"]], np.zeros((2, 1, 1)), threshold=0.5, prevalence=0.4)
    assert np.isnan(Home.of(bare.assign(label=[0, 1])).side).all()
