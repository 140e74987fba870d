"""What a p-value of two groups is about: models, seeds or folds; and the best of many, corrected for the choice."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.group_comparison import Repeat, compare_groups
from xray_pneumonia.evaluation.metrics import table_metrics
from xray_pneumonia.evaluation.selection_bias import Evaluated, correct_for_choice


def repeat(seed, *, skill=1.0, images=120, first=0, split=("1", "None"), offset=0.0, trained_on=480.0):
    rng = np.random.default_rng(seed)
    number = np.arange(first, first + images)
    label = number % 2
    logit = skill * (2 * label - 1) + rng.normal(0, 1, images) + offset
    frame = {"id": [f"{i:04}" for i in number], "patient": [f"p{i // 4}" for i in number], "label": label}
    table = pd.DataFrame(frame | {"logit": logit, "probability": 1 / (1 + np.exp(-logit))})
    return Repeat(table, 0.5, split, trained_on)


def compared(first, second, *names):
    found = compare_groups(first, second, names=names or ("auroc", "accuracy"), replicates=200, seed=0)
    return found, {one.name: one for one in found.differences}


def test_seeds_are_a_source_of_chance():
    _, one_each = compared([repeat(1)], [repeat(2, skill=0.5)], "accuracy")
    found, several = compared([repeat(i) for i in (1, 2)], [repeat(i, skill=0.5) for i in (3, 4)], "accuracy")
    assert found.about == "two configs, over 2 and 2 seeds and the patients"
    values = [
        table_metrics(repeat(i, skill=s).table, threshold=0.5)["accuracy"]
        for i, s in ((1, 1), (2, 1), (3, 0.5), (4, 0.5))
    ]
    assert several["accuracy"].gap.value == pytest.approx(np.mean(values[:2]) - np.mean(values[2:]))
    assert several["accuracy"].first == pytest.approx(np.mean(values[:2]))  # the mean of the runs, not of an ensemble
    half = (several["accuracy"].gap.high - several["accuracy"].gap.low) / 2
    seeds = (np.diff(values[:2]) ** 2 / 2 + np.diff(values[2:]) ** 2 / 2).item() / 2
    assert half > stats.t.ppf(0.975, 60) * np.sqrt(seeds)
    assert one_each["accuracy"].test == "swapped patients"


def test_folds_are_paired_and_share_their_training_images():
    folds = [{"images": 120, "first": 120 * k, "split": ("1", str(k))} for k in range(5)]
    first, second = (
        [repeat(10 * side + k, skill=1.2 - side / 2, offset=k, **one) for k, one in enumerate(folds)] for side in (0, 1)
    )
    found, by_name = compared(first, second[::-1], "auroc")
    assert found.about.startswith("two configs, over 5 folds")
    assert (found.images, found.patients, found.left_out) == (600, 150, 0)
    areas = np.array([[table_metrics(run.table, threshold=0.5)["auroc"] for run in group] for group in (first, second)])
    assert by_name["auroc"].first == pytest.approx(areas[0].mean())  # folds' logits have no common scale: never pooled
    gaps = areas[0] - areas[1]
    t = gaps.mean() / np.sqrt(gaps.var(ddof=1) * (1 / 5 + 120 / 480))
    assert by_name["auroc"].p_value == pytest.approx(2 * stats.t.sf(abs(t), 4))


def test_other_images_and_few_patients():
    with pytest.raises(InputError, match="different images"):
        compared([repeat(1)], [repeat(1, first=500, split=("2", "None"))])
    found, by_name = compared([repeat(1), repeat(2)], [repeat(3, skill=0, first=100), repeat(4, skill=0, first=100)])
    assert (found.images, found.patients, found.left_out) == (20, 5, 200)
    assert all(np.isnan(one.p_value) and np.isnan(one.gap.low) for one in by_name.values())


def test_the_best_of_equals_is_corrected_to_what_they_are():
    configs = [[Evaluated(repeat(seed, images=400).table, 0.5)] for seed in range(30)]
    found = correct_for_choice(configs, name="accuracy", seed=0)
    mean = np.mean([table_metrics(one.table, threshold=0.5)["accuracy"] for [one] in configs])
    assert found.value > mean + 0.02
    assert found.corrected == pytest.approx(mean, abs=0.012)
    assert (
        str(found)
        == f"best of 30 says {found.value:.4f}, corrected {found.corrected:.4f} (on 400 images of 100 patients)"
    )
    small = correct_for_choice([[Evaluated(repeat(s, images=40).table, 0.5)] for s in (1, 2)], name="auroc", seed=0)
    assert "flattered by the choice (fewer than 20 patients)" in str(small)


def test_a_choice_makes_no_figure_worse():
    """Of a config that is always chosen, chance alone puts half of the figures outside the bag above the whole's."""
    for seed in range(6):
        configs = [[Evaluated(repeat(seed, images=80, skill=skill).table, 0.5)] for skill in (-1, 1)]
        found = correct_for_choice(configs, name="accuracy", seed=seed)
        assert found.corrected <= found.value
