"""Two trainings compared: bits, departures, the band."""

import math

import numpy as np
import pytest
import torch

from xray_pneumonia.workflows.reproduce import compare
from xray_pneumonia.workflows.training_record import (
    WeightDifference,
    compare_histories,
    compare_weights,
    kept_metrics,
)

THEN = {
    "train/loss": {1: 0.7, 2: 0.5},
    "val/loss": {1: 0.8, 2: 0.6},
    "val/auroc": {1: 0.9, 2: 0.95},
    "val/accuracy": {1: 0.8, 2: 0.9},
}
SAME = WeightDifference(3, 0, 0.0)
WIDE = {"val/auroc": 0.01, "val/accuracy": 0.03}
OTHER = {"machine.cpu": ("one", "another")}


def now(**changes):
    changed = {name: dict(values) for name, values in THEN.items()}
    for key, value in changes.items():
        stage, name, epoch = key.split("_")
        changed[f"{stage}/{name}"][int(epoch)] = value
    return changed


def level(found, weights=SAME, circumstances=None, band=WIDE):
    return compare(THEN, found, weights, band=band, circumstances=circumstances or {}, monitor="val/auroc").level


def test_the_same_bits():
    verdict = compare(THEN, now(), SAME, band=WIDE, circumstances={}, monitor="val/auroc")
    assert verdict.level == "bit-identical"
    assert str(verdict) == "bit-identical: 4 metrics of 2 epochs, 3 tensors"
    assert level(now(), circumstances=OTHER) == "bit-identical", "more than was promised is still what it is"


def test_anything_less_is_different_where_nothing_differs():
    tiny = np.nextafter(np.float32(0.5), np.float32(1)).item()
    assert level(now(train_loss_2=tiny)) == "different"
    assert level(now(), WeightDifference(3, 1, 1e-12)) == "different"


def test_the_band_holds_only_where_something_differs():
    near, far = now(val_auroc_2=0.955, train_loss_1=0.71), now(val_auroc_2=0.97)
    assert level(near) == "different"
    assert level(near, WeightDifference(3, 3, 0.1), OTHER) == "within the band"
    assert level(far, SAME, OTHER) == "different"
    assert level(now(val_accuracy_2=math.nan), SAME, OTHER) == "different"


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
        (torch.tensor([1.0, -0.0]), WeightDifference(1, 1, 0.0)),
        (torch.tensor([1.0, 0.5]), WeightDifference(1, 1, 0.5)),
        (torch.tensor([1.0, math.nan]), WeightDifference(1, 1, math.inf)),
        (torch.tensor([[1.0, 0.0]]), WeightDifference(1, 1, math.inf)),
        (torch.tensor([1.0, 0.0], dtype=torch.float64), WeightDifference(1, 1, math.inf)),
        (torch.tensor([1.0, 0.0]), WeightDifference(1, 0, 0.0)),
    ],
)
def test_weights_are_compared_bit_by_bit(other, expected):
    assert compare_weights({"a": torch.tensor([1.0, 0.0])}, {"a": other}) == expected


def test_weights_in_another_memory_layout_are_the_same_and_lost_ones_are_not():
    image = torch.randn(2, 3, 4, 4)
    count = torch.tensor(7)
    there = {"a": image.to(memory_format=torch.channels_last), "n": count}
    assert compare_weights({"a": image, "n": count}, there) == WeightDifference(2, 0, 0.0)
    assert compare_weights({"a": image, "n": count}, {"a": image}) == WeightDifference(2, 1, math.inf)


def test_the_kept_epoch_is_the_earliest_of_equals_or_the_last():
    history = {"val/loss": {1: 0.5, 2: 0.3, 3: 0.3, 4: 0.6}, "val/auroc": {1: 0.7, 2: 0.8, 3: 0.9, 4: 0.85}}
    assert kept_metrics(history, ["val/auroc"], monitor="val/loss") == {"val/auroc": 0.8}
    assert kept_metrics(history, ["val/auroc"], monitor="val/auroc") == {"val/auroc": 0.9}
    assert kept_metrics(history, ["val/auroc"], monitor=None) == {"val/auroc": 0.85}
    assert kept_metrics({}, ["val/auroc"], monitor="val/auroc") == {}
    assert kept_metrics({}, ["val/auroc"], monitor=None) == {}
