import numpy as np
import pandas as pd
import pytest

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.comparison import compare
from xray_pneumonia.evaluation.intervals import delong_difference


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


def test_a_model_does_not_differ_from_itself():
    first, _ = tables()
    found = compared(first, first)
    assert all(one.gap.value == 0 and one.p_value == 1 for one in found.values())


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
