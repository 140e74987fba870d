"""Two trainings compared: bits, departures, bands."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from xray_pneumonia.evaluation.agreement import (
    BAND,
    DIFFERENT,
    IDENTICAL,
    Band,
    Weights,
    at_kept,
    compare_histories,
    compare_weights,
    declare_band,
    judge,
)

THEN = {
    "train/loss": {1: 0.7, 2: 0.5},
    "val/loss": {1: 0.8, 2: 0.6},
    "val/auroc": {1: 0.9, 2: 0.95},
    "val/accuracy": {1: 0.8, 2: 0.9},
}
SAME = Weights(3, 0, 0.0)
WIDE = Band({"val/auroc": 0.01, "val/accuracy": 0.03}, "a test")
OTHER = {"machine.cpu": ("one", "another")}


def now(**changes):
    changed = {name: dict(values) for name, values in THEN.items()}
    for key, value in changes.items():
        stage, name, epoch = key.split("_")
        changed[f"{stage}/{name}"][int(epoch)] = value
    return changed


def level(found, weights=SAME, circumstances=None, band=WIDE):
    return judge(
        THEN, found, weights, band=band, circumstances=circumstances or {}, monitor="val/auroc", mode="max"
    ).level


def test_the_same_bits():
    verdict = judge(THEN, now(), SAME, band=WIDE, circumstances={}, monitor="val/auroc", mode="max")
    assert verdict.level == IDENTICAL
    assert str(verdict) == "bit-identical: 4 metrics of 2 epochs, 3 tensors"
    assert level(now(), circumstances=OTHER) == IDENTICAL, "more than was promised is still what it is"


def test_anything_less_is_different_where_nothing_differs():
    tiny = np.nextafter(np.float32(0.5), np.float32(1)).item()
    assert level(now(train_loss_2=tiny)) == DIFFERENT
    assert level(now(), Weights(3, 1, 1e-12)) == DIFFERENT


def test_the_band_holds_only_where_something_differs():
    near, far = now(val_auroc_2=0.955, train_loss_1=0.71), now(val_auroc_2=0.97)
    assert level(near) == DIFFERENT
    assert level(near, Weights(3, 3, 0.1), OTHER) == BAND
    assert level(far, SAME, OTHER) == DIFFERENT
    assert level(now(val_accuracy_2=math.nan), SAME, OTHER) == DIFFERENT


def test_the_first_departure_is_the_earliest_and_training_before_validation():
    found = compare_histories(THEN, now(val_loss_1=0.81, train_loss_2=0.4, val_auroc_1=0.1))
    assert [(one.epoch, one.metric) for one in found] == [(1, "val/loss"), (1, "val/auroc"), (2, "train/loss")]
    assert (found[0].stored, found[0].found) == (0.8, 0.81)


def test_missing_epochs_and_metrics_depart():
    short = {name: {1: values[1]} for name, values in THEN.items()}
    assert {one.epoch for one in compare_histories(THEN, short)} == {2}
    assert {one.epoch for one in compare_histories(short, THEN)} == {2}
    assert {one.metric for one in compare_histories(THEN, {"train/loss": THEN["train/loss"]})} == set(THEN) - {
        "train/loss"
    }


def test_metrics_are_compared_in_the_precision_they_were_logged_in():
    assert not compare_histories({"val/auroc": {1: 0.9}}, {"val/auroc": {1: float(np.float32(0.9))}})
    assert compare_histories({"val/auroc": {1: 0.9}}, {"val/auroc": {1: 0.9000001}})
    assert not compare_histories({"val/auroc": {1: math.nan}}, {"val/auroc": {1: math.nan}})


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (torch.tensor([1.0, -0.0]), Weights(1, 1, 0.0)),
        (torch.tensor([1.0, 0.5]), Weights(1, 1, 0.5)),
        (torch.tensor([1.0, math.nan]), Weights(1, 1, math.inf)),
        (torch.tensor([[1.0, 0.0]]), Weights(1, 1, math.inf)),
        (torch.tensor([1.0, 0.0], dtype=torch.float64), Weights(1, 1, math.inf)),
        (torch.tensor([1.0, 0.0]), Weights(1, 0, 0.0)),
    ],
)
def test_weights_are_compared_bit_by_bit(other, expected):
    assert compare_weights({"a": torch.tensor([1.0, 0.0])}, {"a": other}) == expected


def test_weights_in_another_memory_layout_are_the_same_and_lost_ones_are_not():
    image = torch.randn(2, 3, 4, 4)
    count = torch.tensor(7)
    there = {"a": image.to(memory_format=torch.channels_last), "n": count}
    assert compare_weights({"a": image, "n": count}, there) == Weights(2, 0, 0.0)
    assert compare_weights({"a": image, "n": count}, {"a": image}) == Weights(2, 1, math.inf)


def test_the_kept_epoch_is_the_earliest_of_equals_or_the_last():
    history = {"val/loss": {1: 0.5, 2: 0.3, 3: 0.3, 4: 0.6}, "val/auroc": {1: 0.7, 2: 0.8, 3: 0.9, 4: 0.85}}
    assert at_kept(history, ["val/auroc"], monitor="val/loss", mode="min") == {"val/auroc": 0.8}
    assert at_kept(history, ["val/auroc"], monitor="val/auroc", mode="max") == {"val/auroc": 0.9}
    assert at_kept(history, ["val/auroc"], monitor=None, mode="max") == {"val/auroc": 0.85}
    assert at_kept({}, ["val/auroc"], monitor="val/auroc", mode="max") == {}
    assert at_kept({}, ["val/auroc"], monitor=None, mode="max") == {}


def test_a_band_from_seeds_holds_as_many_further_seeds_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        seeds = rng.normal(0.9, 0.02, size=5)
        band = declare_band({"val/auroc": list(seeds)}, {"val/auroc": 1.0})
        inside += not band.misses({"val/auroc": float(seeds.mean())}, {"val/auroc": float(rng.normal(0.9, 0.02))})
    low, high = stats.binom.interval(0.9999, 2000, 0.95)
    assert low <= inside <= high


def test_few_seeds_fall_back_on_the_stated_default():
    default = {"val/auroc": 0.01}
    for seeds in ({}, {"val/auroc": [0.9, 0.8]}, {"val/loss": [1, 2, 3, 4]}):
        assert declare_band(seeds, default).widths == default
    assert declare_band({"val/auroc": [0.9] * 4}, default).widths == {"val/auroc": 0.001}
