"""Runs side by side: groups, what differs, mean and spread."""

import dataclasses
import math
import statistics

import pytest

from xray_pneumonia.evaluation.report.figures import overlaid_curves
from xray_pneumonia.evaluation.run_groups import Entry, drop_reruns, group, questions, tabulate, tell_images_apart


def entry(name, seed, auroc, **params):
    shared = {"seed": str(seed), "data.seed": str(seed), "data.fold": "0", "home": f"/{name}", "data.image_size": "64"}
    return Entry(name, name, shared | params, {"best/auroc": auroc})


RUNS = [
    entry("a", 1, 0.90, **{"model": "cnn", "model.dropout": "0", "optimizer.lr": "0.1"}),
    entry("b", 1, 0.95, **{"model": "mlp", "model.dropout": "0.1", "optimizer.lr": "0.1", "model.hidden": "8"}),
    entry("c", 2, 0.80, **{"model": "cnn", "model.dropout": "0", "optimizer.lr": "0.1"}),
]


def test_repeats_are_grouped_and_the_best_comes_first():
    groups = group(RUNS, best_by="best/auroc", maximize=True)
    assert [[run.run_id for run in one.entries] for one in groups] == [["b"], ["a", "c"]]
    mean, sd = groups[1].mean_and_sd("best/auroc")
    assert (mean, sd) == (pytest.approx(0.85), pytest.approx(statistics.stdev([0.9, 0.8])))
    assert math.isnan(groups[0].mean_and_sd("best/auroc")[1])
    assert [run.run_id for run in group(RUNS, best_by="best/auroc", maximize=False)[0].entries] == ["a", "c"]


def test_the_table_shows_what_differs_and_nothing_else():
    table = tabulate(group(RUNS, best_by="best/auroc", maximize=True), {"auroc": "best/auroc"})
    assert list(table.columns) == ["runs", "model", "auroc", "auroc sd"]  # no leaf that follows from the choice
    assert table["model"].tolist() == ["mlp", "cnn"]
    assert table["runs"].tolist() == [1, 2]


def test_curves_are_laid_over_each_other():
    history = {"val/auroc": [(1, 0.5), (2, 0.7)]}
    other = {"val/auroc": [(1, 0.7), (2, 0.9), (3, 0.9)]}
    figure = overlaid_curves({"one": [history, other], "two": [other]})
    axes = figure.axes[2]
    mean = next(line for line in axes.lines if line.get_label() == "one")
    assert mean.get_xdata().tolist() == [1, 2]
    assert mean.get_ydata().tolist() == [pytest.approx(0.6), pytest.approx(0.8)]
    assert len(axes.lines) == 4  # both means, and the two runs behind the first


def test_runs_of_different_questions_are_told_apart():
    asked = [{}, {"data.positive": "['PNEUMONIA']", "data.negative": "['NORMAL']"}]
    assert len(questions([Entry("", "", params, {}) for params in asked])) == 1
    other = {"data.positive": "['virus']", "data.negative": "['bacteria']"}
    found = questions([Entry("", "", params, {}) for params in [*asked, other]])
    assert found == ["['PNEUMONIA'] against ['NORMAL']", "['virus'] against ['bacteria']"]


def test_the_same_training_again_is_no_repeat():
    again = dataclasses.replace(RUNS[0], run_id="again", name="again")
    kept, reruns = drop_reruns([*RUNS, again])
    assert [run.run_id for run in kept] == ["b", "c", "again"]
    assert [run.run_id for run in reruns] == ["a"]


def test_runs_of_other_images_are_no_repeats():
    """Seeds that saw the same ones are; nothing is known of old runs without a fingerprint."""
    mine = [dataclasses.replace(entry(str(seed), seed, 0.9), records="aaaaaaaaaa") for seed in (1, 2)]
    other = dataclasses.replace(entry("o", 1, 0.5), records="bbbbbbbbbb")
    for entries, count in ((mine, 1), ([*mine, other], 2), ([*mine, dataclasses.replace(other, records="")], 1)):
        assert len(group(tell_images_apart(entries), best_by="best/auroc", maximize=True)) == count
    table = tabulate(group(tell_images_apart([*mine, other]), best_by="best/auroc", maximize=True), {})
    assert sorted(table["records"]) == ["aaaaaaaa", "bbbbbbbb"]
