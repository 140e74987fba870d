"""Replicates: which, how they are summed up, and when one trial gets no more of them; each worker's share."""

import math
import statistics
from types import SimpleNamespace

import numpy as np
import pytest

from xray_pneumonia.evaluation.run_groups import mean_and_sd
from xray_pneumonia.sweeps import workers
from xray_pneumonia.sweeps.plan import list_replicates
from xray_pneumonia.sweeps.replicate_pruning import is_hopeless, is_out_of_reach


def test_every_seed_on_every_fold():
    listed = list_replicates(SimpleNamespace(seeds=[1, 2], folds=3, shifts=[]))
    assert len(listed) == 6
    assert listed[4].values == {"seed": 2, "data.folds": 3, "data.fold": 1}
    assert list_replicates(SimpleNamespace(seeds=None, folds=2, shifts=[]))[0].values == {
        "data.folds": 2,
        "data.fold": 0,
    }
    assert list_replicates(SimpleNamespace(seeds=None, folds=None, shifts=[])) == []


def test_every_seed_on_every_held_out_shift():
    listed = list_replicates(SimpleNamespace(seeds=[1, 2], folds=None, shifts=["virus"]))
    assert [one.name for one in listed] == ["seed 1 plain", "seed 1 virus", "seed 2 plain", "seed 2 virus"]
    assert [one.values["data.split"] for one in listed] == ["patient", "virus"] * 2
    folds = list_replicates(SimpleNamespace(seeds=None, folds=2, shifts=["virus"]))
    assert folds[1].values == {"data.split": "patient", "data.folds": 2, "data.fold": 1}
    assert folds[2].values == {"data.split": "virus"}


def test_mean_and_sd():
    values = [0.9, 0.92, 0.95]
    assert mean_and_sd(values) == (pytest.approx(statistics.mean(values)), pytest.approx(statistics.stdev(values)))
    assert math.isnan(mean_and_sd([0.9])[1])


def replicates(*values):
    return {f"fold {place}": value for place, value in enumerate(values)}


@pytest.mark.parametrize(
    ("values", "maximize", "others", "expected"),
    [
        ([0.80], True, [(0.95, 0.91, 0.93), (0.94, 0.91, 0.92)], True),
        ([0.94], True, [(0.95, 0.91, 0.93), (0.94, 0.91, 0.92)], False),
        ([0.80], False, [(0.95, 0.91, 0.93), (0.94, 0.91, 0.92)], False),
        ([0.1], True, [(0.9, 0.8, 0.9)], False),  # the spread is not known yet
        ([0.1], True, [], False),
    ],
)
def test_what_is_far_behind_is_given_up(values, maximize, others, expected):
    others = [replicates(*one) for one in others]
    assert is_hopeless(replicates(*values), others=others, maximize=maximize) is expected


@pytest.mark.parametrize(("behind", "least", "most"), [(0.0, 0.0, 0.06), (0.010, 0.9, 1.0)])
def test_a_hard_first_fold_is_no_reason_to_give_up_but_being_behind_on_it_is(behind, least, most):
    """Folds differ by sd 0.012, trials within a fold by 0.002; the hardest fold comes first."""
    dice = np.random.default_rng(0)
    lost = 0
    for _ in range(300):
        folds = np.sort(dice.normal(0.95, 0.012, 5))
        *others, mine = folds + dice.normal(0, 0.002, size=(6, 5))
        lost += is_hopeless(replicates(*mine[:1] - behind), others=[replicates(*one) for one in others], maximize=True)
    assert least <= lost / 300 <= most


@pytest.mark.parametrize(
    ("plain", "others", "expected"),
    [
        (0.90, [(0.95, 0.80), (0.94, 0.84)], True),  # with 0.84 to come, 0.87 at best: below 0.89
        (0.94, [(0.95, 0.80), (0.94, 0.83)], False),  # may still draw level
        (0.10, [], False),
    ],
)
def test_a_score_that_can_no_longer_be_the_best_is_given_up(plain, others, expected):
    scales = {part: {"log_loss": [0.1, 0.1], "balanced_accuracy": [0.9, 0.01]} for part in ("plain", "virus")}

    def parts(*values):
        measured = zip(("plain", "virus"), values, strict=False)
        return {
            part: {f"robust/{part}/log_loss": 0.1, f"robust/{part}/balanced_accuracy": value}
            for part, value in measured
        }

    assert is_out_of_reach(parts(plain), others=[parts(*one) for one in others], scales=scales) is expected


def test_the_machine_is_divided(monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    shares = [workers.share(number, 3, gpus=2) for number in range(3)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["4", "5", "4"]
    assert {share["OMP_NUM_THREADS"] for share in shares} == {"2"}
    assert "CUDA_VISIBLE_DEVICES" not in workers.share(0, 2, gpus=0)


@pytest.mark.parametrize(
    ("count", "gpus", "threads", "words"),
    [
        (3, 2, None, "2 threads each, 8 processors; up to 2 on each of 2 GPUs"),
        (2, 2, None, "4 threads each, 8 processors; a GPU of its own, 2 in all"),
        (12, 0, None, "1 thread each, 8 processors with 1.5 threads on each; no GPU"),
        (4, 0, 4, "4 threads each, 8 processors with 2 threads on each; no GPU"),
    ],
)
def test_workers_say_what_they_get(monkeypatch, count, gpus, threads, words):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert workers.word_share(count, gpus=gpus, threads=threads) == f"workers={count}: {words}"
