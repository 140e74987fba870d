"""`xray compare` on runs that were written by hand: groups, formats, widths, the paired test, the link."""

import io
import json
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from xray_pneumonia import terminal
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.evaluation.intervals import delong_difference
from xray_pneumonia.evaluation.metrics import table_metrics
from xray_pneumonia.tracking import server
from xray_pneumonia.tracking.run import start_run
from xray_pneumonia.tracking.store import TrackingSettings, open_store
from xray_pneumonia.workflows import compare as command
from xray_pneumonia.workflows import comparison_tables as workflow

LABELS = np.arange(60) % 2
DECIDED = ("accuracy", "sensitivity", "specificity")


def answers(skill, seed):
    dice = np.random.default_rng(seed)
    logits = skill * (2 * LABELS - 1) + dice.normal(size=60)
    table = pd.DataFrame({"id": [f"{i:02}" for i in range(60)], "patient": [f"p{i // 2}" for i in range(60)]})
    return table.assign(subtype="normal", label=LABELS, logit=logits, probability=1 / (1 + np.exp(-logits)))


RUNS = {  # width, learning rate, seed, AUROC; what the sweep said of it
    "wide 1": ("16", "0.0012345678", "1", 0.97, "COMPLETE"),
    "wide 2": ("16", "0.0012345678", "2", 0.95, "COMPLETE"),
    "narrow": ("8", "0.01", "1", 0.90, "COMPLETE"),
    "hopeless": ("4", "0.1", "1", 0.99, "PRUNED"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Write the runs of a sweep; returns its home and the ids by name."""
    home = tmp_path_factory.mktemp("compared")
    settings = TrackingSettings(uri=None, experiment_name="xray", run_name=None, system_metrics=False, required=False)
    store, ids = open_store(settings, home=home), {}
    for name, (width, lr, seed, auroc, state) in RUNS.items():
        tags = {"verb": "train", "sweep.name": "nets", "sweep.state": state}
        with start_run(store, name=name, tags=tags, system_metrics=False) as run:
            cut = {"data.seed": seed, "data.split_seed": "0", "data.folds": "None", "data.fold": "0"}
            run.log_params({"model.width": width, "optimizer.lr": lr, "seed": seed, "data.image_size": "64", **cut})
            figures = {key: auroc for key in ("auroc", "accuracy", "sensitivity", "specificity")}
            run.log_metrics({f"best/{key}": value for key, value in figures.items()})
            run.log_metrics({"data/val_images": 60, "data/val_patients": 30 if seed == "1" else 29})
            for epoch in (1, 2):
                run.log_metrics({"val/loss": 1 / epoch, "val/accuracy": 0.8, "val/auroc": auroc}, step=epoch)
            predictions.write(
                answers(1.0 if width == "16" else 0.3, int(seed) + len(name)), run.path("predictions/val.csv")
            )
        ids[name] = run.run_id
    return home, ids


@pytest.fixture
def compare(xray, written):
    home, _ = written
    return lambda *arguments: xray("compare", f"home={home}", "tracking.system_metrics=false", *arguments)


def test_seeds_make_a_group_and_what_differs_a_column(compare, written, drawn):
    home, ids = written
    done = compare("sweep_name=nets", "format=csv")
    assert done.code == 0, done.err
    table, test = done.out.split("\n\n")
    rows = pd.read_csv(io.StringIO(table), index_col="group")
    assert [name for name in rows.columns if name.startswith(("model", "optimizer", "data"))] == [
        "model.width",
        "optimizer.lr",
    ]
    assert rows["runs"].tolist() == [2, 1]
    assert rows["auroc"].tolist() == pytest.approx([0.96, 0.90])
    assert rows["auroc sd"].tolist()[0] == pytest.approx(0.02 / 2**0.5)
    assert np.isnan(rows["auroc sd"].tolist()[1])
    assert "left out, being no repeats" not in done.err
    assert "1 trials that a sweep ended early are left out" in done.err

    assert rows["val images"].tolist() == [60, 60]
    tested = pd.read_csv(io.StringIO(test), index_col=0)
    assert set(tested["about"]) == {"two configs, over 2 and 1 seeds and the patients"}
    assert set(tested["test"]) == {"t over seeds and patients"}
    assert tested["images"].tolist() == [60, 60, 30, 30]
    tables = {name: predictions.read(_artifacts(home, ids[name]) / "predictions/val.csv") for name in ids}
    each = [table_metrics(tables[name], threshold=0.5)["accuracy"] for name in ("wide 1", "wide 2")]
    assert tested.loc["accuracy", "group 1"] == pytest.approx(np.mean(each), abs=1e-4)  # the mean of the table's runs
    assert (home / "comparison" / "xray" / "learning_curves.png").stat().st_size > 4_000


def test_two_models_are_tested_as_such_and_what_p_rests_on_is_printed(compare, written):
    home, ids = written
    asked = f"run_ids=[{ids['wide 1']},{ids['narrow']}]"
    test = compare(asked, "format=csv").out.split("\n\n")[1]
    tables = [predictions.read(_artifacts(home, ids[name]) / "predictions/val.csv") for name in ("wide 1", "narrow")]
    _, p_value = delong_difference(LABELS, tables[0]["logit"], tables[1]["logit"], tables[0]["patient"])
    tested = pd.read_csv(io.StringIO(test), index_col=0)
    assert tested.loc["auroc", "test"] == "DeLong"
    assert tested.loc["auroc", "p"] == pytest.approx(p_value, rel=0.01)
    assert (tested["p, Holm"] >= tested["p"]).sum() == 3
    assert tested.loc["specificity", "test"].endswith("patients differ, needs 6")
    said = compare(asked, "format=markdown").out
    assert "60 shared images of 30 patients, paired by image; about these two models, not how they were trained" in said
    assert "3 metrics tested" in said
    assert "auroc: best of 2 says" in said
    assert "corrected 0." in said


def write_runs(home, name, *runs, width=None):
    """Write runs, each of a table of predictions and an operating point of its own; returns what compares them."""
    settings = TrackingSettings(uri=None, experiment_name=name, run_name=None, system_metrics=False, required=False)
    store = open_store(settings, home=home)
    for place, (table, point) in enumerate(runs):
        with start_run(store, name=f"run {place}", tags={"verb": "train"}, system_metrics=False) as run:
            found = table_metrics(table, threshold=point)
            run.log_params({"model.width": width or str(place), "seed": "1"})
            run.log_metrics({f"operating/{name}": found[name] for name in DECIDED})
            run.log_metrics({"operating/threshold": point, "best/auroc": found["auroc"], "best/accuracy": 0.123})
            predictions.write(table, run.path("predictions/val.csv"))
    return f"home={home}", f"experiment_name={name}"


@pytest.fixture(scope="module")
def uneven(written):
    """Two runs that share two images of one patient."""
    runs = [(answers(1.0, 0)[:30], 0.7), (answers(1.0, 1)[28:], 0.2)]
    return *write_runs(written[0], "uneven", *runs), "format=markdown"


def test_a_training_that_ran_twice_counts_once(xray, tmp_path):
    """Two runs of one seed had been two repeats, whose standard deviation was zero."""
    home = write_runs(tmp_path, "twice", (answers(1.0, 0), 0.5), (answers(1.0, 0), 0.5), width="8")
    done = xray("compare", *home, "format=csv")
    assert pd.read_csv(io.StringIO(done.out))["runs"].tolist() == [1]
    assert "left out, being no repeats: run 0 (" in done.err


def test_runs_that_share_one_patient_are_not_tested(xray, uneven):
    done = xray("compare", *uneven)
    assert done.code == 0, done.err
    assert "2 shared images of 1 patients" in done.out
    assert "2 are shared, 58 are left out" in done.err
    assert "none: 1 patients of the rarer class, needs 10" in done.out
    assert "| sensitivity | - | - | - | - | - | 1 | 1 | 0 |" in done.out  # no rate of one patient
    assert "auroc: best of 2 says" in done.out
    assert "flattered by the choice (they were validated on different images)" in done.out


def test_table_and_test_judge_a_run_at_its_own_operating_point(xray, uneven):
    done = xray("compare", *uneven)
    assert "0.1230" not in done.out
    assert "at each run's own operating point, chosen on them" in done.out
    expected = table_metrics(answers(1.0, 0)[:30], threshold=0.7)["accuracy"]
    assert f"{expected:.4f}" in done.out


def test_table_and_test_give_one_accuracy_for_one_run(xray, written):
    runs = [(answers(1.0, seed), point) for seed, point in enumerate([0.7, 0.2])]
    done = xray("compare", *write_runs(written[0], "points", *runs), "format=csv")
    table, test = (pd.read_csv(io.StringIO(one)) for one in done.out.split("\n\n"))
    tested = test.set_index(test.columns[0])
    for group, width in enumerate(table["model.width"], start=1):
        given, point = runs[width]
        expected = table_metrics(given, threshold=point)
        assert expected["accuracy"] != table_metrics(given, threshold=0.5)["accuracy"]
        assert tested.loc[list(DECIDED), f"group {group}"].tolist() == pytest.approx(
            [expected[name] for name in DECIDED], abs=5e-5
        )
        assert table.loc[group - 1, list(DECIDED)].tolist() == pytest.approx([expected[name] for name in DECIDED])


def _artifacts(home, run_id):
    return home / "artifacts" / "xray" / run_id / "artifacts"


def test_the_line_opens_mlflow_on_exactly_these_runs(compare, written):
    _, ids = written
    done = compare()
    [link] = [line.strip() for line in done.out.splitlines() if "compare-runs" in line]
    assert '"' not in link  # a terminal would end the link there
    asked = unquote(link).partition("runs=")[2].partition("&")[0]
    assert json.loads(asked) == [ids[name] for name in RUNS if name != "hopeless"]


def test_the_line_names_the_top_of_many_runs(compare, written, monkeypatch):
    _, ids = written
    monkeypatch.setattr(command, "MOST_COMPARED", 2)
    lines = compare().out.splitlines()
    [named] = [line for line in lines if line.startswith("See it")]
    assert named.startswith("See it (the top 2 of 3 runs): xray ui")
    assert named.endswith(f"'run_ids=[{ids['wide 1'][:8]},{ids['wide 2'][:8]}]'")
    [link] = [line for line in lines if "compare-runs" in line]
    assert [name for name in ids if ids[name] in link] == ["wide 1", "wide 2"]
    for module in (server, command):
        monkeypatch.setattr(module, "address", lambda _: "http://here:5000")  # a server that runs
    [link] = [line for line in compare().out.splitlines() if "compare-runs" in line]
    assert link.startswith("See it (the top 2 of 3 runs): http://here:5000/")
    assert [name for name in ids if ids[name] in link] == ["wide 1", "wide 2"]


def test_pruned_trials_and_chosen_runs(compare, written):
    _, ids = written
    assert "| 4 |" in compare("pruned=true", "format=markdown").out
    alone = compare(f"run_ids=[{ids['hopeless']}]", "format=markdown")
    assert "0.9900" in alone.out
    twice = compare(f"run_ids=[{ids['hopeless']},{ids['hopeless']}]")
    assert (twice.code, "name each run once" in twice.err) == (2, True), twice.err
    done = compare("pair=[1,5]")
    assert done.code == 2
    assert "pair=[1, 5]: two different groups from 1 to 2" in done.err
    done = compare("sweep_name=net")
    assert done.code == 2
    assert "did you mean nets?" in done.err


def test_figures_say_what_they_rest_on(compare, written):
    _, ids = written
    said = compare("format=markdown").out
    assert "Best epoch, on 60 validation images of 29 to 30 patients at threshold 0.5" in said
    assert "the epoch was chosen on them" in said
    rested = workflow.basis([{}], ["auroc"], kept={"last"}, chosen=False)
    assert rested[0].startswith("Last epoch, on")
    assert rested[0].endswith("none was chosen on them.")
    shifted = compare(f"run_ids=[{ids['narrow']}]", "metrics=[shift/auroc]").out
    assert "1 run, 1 config " in shifted
    assert "an unknown number of images" in shifted
    assert "Best epoch" not in shifted


@pytest.mark.parametrize("width", [80, 160])
def test_a_narrow_terminal_folds_no_figure(monkeypatch, capsys, width):
    monkeypatch.setattr(terminal, "Console", lambda **given: Console(**{**given, "width": width}))
    table = pd.DataFrame({"runs": [3], "model.activations": ["[sigmoid,sigmoid,sigmoid]"], "optimizer.lr": ["-"]})
    table["optimizer.weight_decay"] = "0.00048355744752158394"
    for metric in ("auroc", "accuracy", "sensitivity", "specificity"):
        table[metric], table[f"{metric} sd"] = 0.987654, 0.012345
    table.index = pd.Index([1], name="group")
    workflow.show(table, ["auroc", "accuracy", "sensitivity", "specificity"], "rich")
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= width
    assert said.count("0.9877") == 4
    assert "0.0004836" in said
    assert "[sigmoid,sigmoid,sigmoid]" in said
    assert ("group 1: model.activations=" in said) == (width == 80)
