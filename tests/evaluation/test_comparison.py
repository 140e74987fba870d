import numpy as np
import pandas as pd
import pytest

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.comparison import Difference, compare, holm
from xray_pneumonia.evaluation.intervals import Estimate, delong_difference


def tables(seed=0, images=300, *, worse=0.0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, images)
    shared = 2 * label - 1 + rng.normal(0, 1, images)
    made = []
    for noise in (0.3, 0.3 + worse):
        logit = shared + rng.normal(0, noise, images)
        frame = {"id": [f"{i}" for i in range(images)], "patient": np.arange(images) // 2, "label": label}
        made.append(pd.DataFrame(frame | {"logit": logit, "probability": 1 / (1 + np.exp(-logit))}))
    return made


def compared(first, second, **changes):
    given = {"thresholds": (0.5, 0.5), "replicates": 300, "seed": 0} | changes
    return {one.name: one for one in compare(first, second, **given)}


def test_a_worse_model_is_found_out():
    found = compared(*tables(worse=3.0))
    assert found["auroc"].gap.low > 0
    assert found["auroc"].p_value < 0.001
    assert found["accuracy"].p_value < 0.05
    assert found["accuracy"].gap.value == pytest.approx(found["accuracy"].first - found["accuracy"].second)


def test_a_difference_of_calibration_errors_has_no_interval():
    found = compared(*tables(worse=3.0))
    gap, brier = found["calibration_error"].gap, found["brier"].gap
    assert (gap.value != 0, gap.basis) == (True, "see its floor")
    assert np.isnan([gap.low, gap.high]).all()
    assert brier.low < brier.value < brier.high


def test_a_model_does_not_differ_from_itself():
    first, _ = tables()
    found = compared(first, first)
    assert all(one.gap.value == 0 and np.isnan(one.p_value) for one in found.values())
    assert found["brier"].test == "none: 0 patients differ, needs 6"


def differing(count, *, normals=200, ill=20):
    """Two models that answer some of the normal patients differently, all one way."""
    label = np.repeat([0, 1], [normals, ill])
    made = []
    for extra in (0, count):
        logit = np.where(label == 1, 2.0, -2.0)
        logit[:extra] = 1.0
        frame = {"id": np.arange(len(label)).astype(str), "patient": np.arange(len(label)), "label": label}
        made.append(pd.DataFrame(frame | {"logit": logit, "probability": 1 / (1 + np.exp(-logit))}))
    return made


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_too_few_patients_that_differ_give_no_p_value(count):
    found = compared(*differing(count))
    for name in ("specificity", "accuracy", "brier", "f1"):
        assert np.isnan([found[name].p_value, found[name].p_holm, found[name].gap.low]).all(), name
        assert found[name].test == f"none: {count} patients differ, needs 6"
    assert (found["specificity"].gap.images, found["sensitivity"].gap.images) == (200, 20)


def test_six_patients_that_differ_one_way_give_the_exact_mid_p():
    found = compared(*differing(6), replicates=20_000, names=("specificity",))["specificity"]
    assert found.p_value == pytest.approx(1 / 64, rel=0.15)  # 2 of 64 swaps are as large, counted half
    assert found.test == "swapped patients"


def test_no_test_without_ten_patients_of_each_class():
    found = compared(*differing(50, ill=9))
    assert all(np.isnan(one.p_value) and np.isnan(one.gap.low) for one in found.values())
    assert found["auroc"].test == "none: 9 patients of the rarer class, needs 10"


def test_p_values_are_corrected_for_their_number():
    given = [
        Difference(name, 1, 1, Estimate(0, np.nan, np.nan), p, "")
        for name, p in {"a": 0.03, "b": 0.01, "c": 0.04, "d": np.nan}.items()
    ]
    assert [one.p_holm for one in holm(given)] == pytest.approx([0.06, 0.03, 0.06, np.nan], nan_ok=True)


def test_rows_are_matched_by_id():
    first, second = tables()
    shuffled = second.sample(frac=1, random_state=0)
    assert compared(first, shuffled)["auroc"] == compared(first, second)["auroc"]
    gap, p_value = delong_difference(first["label"], first["logit"], second["logit"], first["patient"])
    assert compared(first, second)["auroc"].p_value == p_value
    assert compared(first, second)["auroc"].gap == gap


def test_other_images_cannot_be_compared():
    first, second = tables()
    with pytest.raises(InputError, match="same images"):
        compared(first, second.iloc[1:])


@pytest.mark.long
def test_the_bootstrap_keeps_its_error_rate():
    """Equally good models differ in accuracy "significantly" in about 5 % of 1,000 tables."""
    rejected = [compared(*tables(seed, 400), seed=seed)["brier"].p_value < 0.05 for seed in range(1000)]
    assert 0.03 <= np.mean(rejected) <= 0.07
