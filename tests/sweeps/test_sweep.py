"""Real sweeps, run by the real command."""

import csv
import json
import logging
import re
import sqlite3
import subprocess
from urllib.parse import unquote

import optuna
import pytest
from mlflow import MlflowClient

from xray_pneumonia.sweeps import trial as sweep_trial
from xray_pneumonia.sweeps.parent_run import word_seconds
from xray_pneumonia.sweeps.sweep import _findings_once


@pytest.fixture
def sweep(xray, small):
    """Run a small sweep in this process, which spares an import of all libraries."""
    return lambda *arguments: xray("train", "-m", *small, *arguments)


@pytest.fixture
def folder(records, tmp_path):
    """Name the folder of the only sweep's files."""

    def named():
        [parent] = records.runs("sweep")
        return tmp_path / "mlruns" / "artifacts" / "xray" / parent.info.run_id / "artifacts"

    return named


def test_a_grid_is_one_parent_run_and_a_failing_point_does_not_end_it(xray, sweep, records, folder):
    done = sweep("data.batch_size=0,64", "sweep.name=grid")
    assert done.code == 0, done.err
    [parent] = records.runs("sweep")
    assert parent.info.status == "FINISHED"
    assert done.out.splitlines()[-1].startswith(f"sweep_id={parent.info.run_id} trials=1 val/auroc=")
    assert re.findall(
        r"best so far: val/auroc [\d.]+ \(trial 1\); 1 of 2 trials, [\d.]+ a minute$", done.err, re.MULTILINE
    )
    children = records.runs("train")
    assert [run.info.status for run in children] == ["FAILED", "FINISHED"]
    assert [run.data.tags["override.data.batch_size"] for run in children] == ["0", "64"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert children[0].data.tags["reason"].startswith("InputError: data.batch_size=0")
    assert [run.data.tags["state"] for run in children] == ["failed", "complete"]
    best = {"trial": "1", "data.batch_size": "64", "value": f"{records.study('grid').best_value:.6g}"}
    assert best.items() <= {key.removeprefix("sweep.best."): text for key, text in parent.data.tags.items()}.items()
    assert parent.data.tags["mlflow.note.content"].startswith(f"Best: `grid 1`, val/auroc {best['value']}")
    assert parent.data.metrics["best/auroc"] == pytest.approx(children[1].data.metrics["best/auroc"], abs=1e-6)
    assert parent.data.params["model.width"] == children[1].data.params["model.width"]
    rows = list(csv.DictReader((folder() / "trials.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["fail", "complete"]
    assert json.loads((folder() / "space.json").read_text())["space"] == {"data.batch_size": "0,64"}
    assert float(rows[1]["val/auroc"]) == pytest.approx(records.study("grid").best_value, abs=1e-6)

    for changed, message in (
        (["data.batch_size=64,16"], "space.data.batch_size: was 0,64, now 64,16"),
        (["data.batch_size=0,64", "model.dropout=0.1"], "fixed.model.dropout: was absent, now 0.1"),
    ):
        done = sweep(*changed, "sweep.name=grid")
        assert done.code == 2
        assert message in done.err

    done = xray("sweeps")
    assert done.code == 0
    assert "1 of 2" in done.out


def test_the_last_fold_fits_the_margin_on_all_and_the_others_when_they_are_evaluated(xray, sweep, records, tmp_path):
    done = sweep("data.batch_size=64", "sweep.folds=2", "evaluation=quick", "evaluation.max_error=0.3")
    assert done.code == 0, done.err
    first, last = records.runs("train")[:2]
    assert "1 of 2 folds are trained so far: the margin is fitted on the validation split of this one" in done.err
    counts = {name: [run.data.metrics[f"promise/{name}"] for run in (first, last)] for name in ("folds", "images")}
    assert counts["folds"] == [0, 2]
    whole, patients = (
        sum(int(run.data.params[f"data/val_{what}"]) for run in (first, last)) for what in ("images", "patients")
    )
    assert counts["images"] == [int(first.data.params["data/val_images"]), whole]
    [parent] = records.runs("sweep")
    said = parent.data.tags["sweep.best.promise"]
    assert f"{whole} films of {patients} patients, out of fold: 2 nets, each on films it never saw" in said
    assert said in done.err

    done = xray("evaluate", f"run_id={first.info.run_id}", "evaluation=quick")
    assert done.code == 0, done.err
    [numbers] = tmp_path.glob(f"mlruns/artifacts/xray/{done.run_id}/artifacts/evaluation/val/evaluation.json")
    promise = json.loads(numbers.read_text())["decision"]["promise"]
    assert promise == pytest.approx({name: last.data.metrics[f"promise/{name}"] for name in promise}, abs=1e-6)


def test_a_sweep_of_which_nothing_can_run_blames_the_input(sweep, records):
    done = sweep("data.batch_size=0,-1", "sweep.max_failures=null")
    assert done.code == 2
    assert "no trial could run; trial 0: InputError: data.batch_size=0" in done.err
    assert [run.info.status for run in records.runs("sweep")] == ["FAILED"]


@pytest.mark.parametrize(("silent", "said"), [(False, ["twins"]), (True, [])])
def test_the_audit_is_said_once_in_a_sweep(caplog, silent, said):
    log = logging.getLogger("xray_pneumonia.data.datamodule")
    with _findings_once(silent=silent):
        log.warning("%s", "twins")
        log.warning("%s", "twins")
    assert [record.getMessage() for record in caplog.records] == said
    log.warning("%s", "twins")  # of a training by itself
    assert len(caplog.records) == len(said) + 1


@pytest.mark.parametrize(("seconds", "words"), [(41.3, "41 s"), (300, "5 min"), (9000, "2.5 h")])
def test_the_time_that_is_left_is_no_finer_than_an_estimate(seconds, words):
    assert word_seconds(seconds) == words


@pytest.mark.long
def test_what_failed_is_tried_again_and_what_is_done_stays(xray, sweep, records, tmp_path, drawn):
    arguments = ["data.batch_size=64,0,32", "sweep.name=grid"]
    assert sweep(*arguments).code == 0
    assert len(records.runs("train")) == 3
    done = sweep(*arguments, "sweep.max_failures=0")
    assert done.code == 1, done.out
    assert "sweep.max_failures=0" in done.err
    children = records.runs("train")
    assert len(children) == 4
    assert children[-1].data.tags["override.data.batch_size"] == "0"
    assert len(records.runs("sweep")) == 1

    done = xray("compare", "sweep_name=grid", "format=csv")
    assert done.code == 0
    assert "data.batch_size" in done.out
    assert "needs 10" in done.out  # patients of the rarer class, for a test of two models
    assert (tmp_path / "mlruns" / "comparison" / "xray" / "learning_curves.png").stat().st_size > 4_000
    ids = {run.info.run_id for run in children if run.info.status == "FINISHED"}
    asked = unquote(xray("compare", "sweep_name=grid").out).partition("compare-runs?runs=")[2].partition("&")[0]
    assert set(json.loads(asked)) == ids


def test_wrong_input_makes_nothing(xray, tmp_path):
    for arguments, message in (
        (["-m", "optimizer.lrr=1,2"], "did you mean optimizer.lr"),
        (["-m", "model=resnet,resnett"], "did you mean resnet"),
        (["-m", "optimizer.lr=1e-3"], "nothing to sweep over"),
        (["-m", "optimizer.lr=1e-3,1e-4", "monitor=val/aurocc"], "monitor=val/aurocc"),
        (["-m", "optimizer.lr=1e-3,1e-4", "sweep.objectives={val/dice:max}"], "val/dice"),
        (["sweep=optimizer", "data=synthetic"], "needs -m"),
    ):
        done = xray("train", *arguments)
        assert done.code == 2, done.err
        assert message in done.err
    assert not (tmp_path / "mlruns" / "sweeps.db").exists()


def damage(path, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "text":
        path.write_text("not a database at all\n")
    elif kind == "folder":
        path.mkdir()
    else:
        if kind == "newer":
            optuna.storages.RDBStorage(f"sqlite:///{path}").engine.dispose()
            change = ["update alembic_version set version_num = 'v99.0.0'"]
        else:
            change = [
                "create table alembic_version (version_num text)",
                "insert into alembic_version values ('cafe0123')",
            ]
        with sqlite3.connect(path) as connection:
            for statement in change:
                connection.execute(statement)
        connection.close()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "no SQLite database"),
        ("folder", "is a folder"),
        ("foreign", "another program's tables"),
        ("newer", "another version of Optuna"),
    ],
)
def test_a_database_that_cannot_serve_is_refused_and_not_altered(sweep, tmp_path, kind, message):
    path = tmp_path / "mlruns" / "sweeps.db"
    damage(path, kind)
    before = path.read_bytes() if path.is_file() else None
    done = sweep("data.batch_size=64,32")
    assert done.code == 2, done.err
    assert message in done.err
    assert "sweep.storage=" in done.err
    assert before == (path.read_bytes() if path.is_file() else None)


@pytest.mark.parametrize("url", ["postgres://me:secret@host/db", "mysql://me:secret@host/db", "file:./x"])
def test_an_unusable_url_is_refused_without_its_password(sweep, url):
    done = sweep("data.batch_size=64,32", f"sweep.storage='{url}'")
    assert done.code == 2
    assert "sweep.storage=" in done.err
    assert "secret" not in done.err


@pytest.mark.long
def test_replicates_plots_and_the_best_config(xray, sweep, records, folder, drawn):
    arguments = ["trainer.max_epochs=3", "trainer.patience=null", "optimizer.lr=1e-6,1e-2,2e-6,3e-6"]
    done = sweep(*arguments, "sweep.seeds=[1,2]", "sweep.name=seeds")
    assert done.code == 0, done.err
    groups = records.runs("trial")
    assert len(groups) == 4
    assert re.search(r"val/auroc 0.\d{4}: best of [34], (flattered by|corrected for) the choice", done.out)
    complete = [t for t in records.trials("seeds") if t.state.name == "COMPLETE"]
    for group in groups:
        members = [r for r in records.runs("train") if r.data.tags["mlflow.parentRunId"] == group.info.run_id]
        values = [json.loads(run.data.tags["sweep.values"])[0] for run in members]
        assert group.data.metrics["best/auroc"] == pytest.approx(sum(values) / len(values))
        assert group.data.params["replicates"] == str(len(values))
        if group.data.tags["sweep.state"] == "COMPLETE":
            assert len(values) == 2
            assert group.data.metrics["best/auroc_sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
            assert any(t.value == pytest.approx(group.data.metrics["best/auroc"]) for t in complete)

    for kind in ("optimization_history", "param_importances", "parallel_coordinate", "slice"):
        assert (folder() / "plots" / f"{kind}.png").stat().st_size > 2_000, kind
    assert "plotly" in (folder() / "plots.html").read_text()
    done = xray("train", f"experiment={folder() / 'best.yaml'}", "tracking.system_metrics=false")
    assert done.code == 0, done.err
    trained = records.runs("train")[-1]
    winner = max(complete, key=lambda trial: trial.value)
    assert float(trained.data.params["optimizer.lr"]) == float(winner.params["optimizer.lr"])
    assert trained.data.params["model.width"] == "4"
    assert "sweep.name" not in trained.data.params


@pytest.mark.long
def test_pruned_trials_end_early_and_well(sweep, records):
    done = sweep(
        *("trainer.max_epochs=4", "trainer.patience=null", "optimizer.lr=interval(1e-6,1e-2)"),
        *("sweep.n_trials=5", "sweep.pruner=median", "sweep.prune_after_trials=1", "sweep.name=pruned"),
        "sweep.first=[{optimizer.lr:1e-2},{optimizer.lr:1e-6}]",
    )
    assert done.code == 0, done.err
    trials = records.trials("pruned")
    assert [t.params["optimizer.lr"] for t in trials[:2]] == [1e-2, 1e-6]
    pruned = [t for t in trials if t.state.name == "PRUNED"]
    assert pruned
    for trial in pruned:
        [run] = [r for r in records.runs("train") if r.data.tags["sweep.trial_id"] == str(trial._trial_id)]
        assert run.info.status == "FINISHED"
        assert (run.data.tags["sweep.state"], run.data.tags["state"]) == ("PRUNED", "pruned")
        assert run.info.run_name == f"pruned: pruned {trial.number}"
        assert run.data.tags["mlflow.note.content"].startswith("Pruned after ")
        assert max(trial.intermediate_values) < 4


def require_six_trials_below_one_parent(records, name, *outputs):
    trials = records.trials(name)
    assert [(t.number, t.state.name) for t in trials] == [(number, "COMPLETE") for number in range(6)]
    [parent] = records.runs("sweep")
    assert parent.info.status == "FINISHED"
    assert sorted(int(run.data.tags["sweep.trial"]) for run in records.runs("train")) == list(range(6))
    for out in outputs:
        assert out.splitlines()[-1].startswith(f"sweep_id={parent.info.run_id} trials=6 ")
    return {t.user_attrs["worker"]["pid"] for t in trials}


@pytest.mark.long
def test_workers_share_one_study(command, records):
    command += ("optimizer.lr=interval(1e-4,1e-2)", "sweep.n_trials=6", "sweep.name=team", "workers=3")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(require_six_trials_below_one_parent(records, "team", done.stdout)) > 1


@pytest.mark.long
def test_two_sweeps_of_one_name_at_once_are_one(command, records):
    command += ("optimizer.lr=tag(log,interval(1e-4,1e-2))", "sweep.n_trials=6", "sweep.name=twins")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    twins = [subprocess.Popen(command, **pipes) for _ in range(2)]
    texts = [twin.communicate(timeout=600) for twin in twins]
    assert [twin.returncode for twin in twins] == [0, 0], texts
    pids = require_six_trials_below_one_parent(records, "twins", *(out for out, _ in texts))
    assert pids == {twin.pid for twin in twins}


def test_a_run_that_the_store_kept_open_ends_as_its_trial_did(sweep, records):
    arguments = ["data.batch_size=0,64", "sweep.name=grid"]
    assert sweep(*arguments).code == 0
    for run in records.runs("train"):
        MlflowClient(records.mlflow).update_run(run.info.run_id, status="RUNNING")
    assert sweep(*arguments, "sweep.max_failures=null").code == 0
    by_trial = {run.data.tags["sweep.trial"]: run.info.status for run in records.runs("train")}
    assert by_trial == {"0": "FAILED", "1": "FINISHED", "2": "FAILED"}  # trial 2 is 0 once more


def test_a_trial_is_scored_by_films_as_they_are_corrupted_and_held_out(sweep, records, monkeypatch):
    asked = []
    monkeypatch.setattr(sweep_trial, "is_out_of_reach", lambda parts, *_, **__: bool(asked.append(list(parts)) or True))
    few = ["sweep.folds=null", "sweep.shifts=[soft]", "sweep.seeds=[1]", "sweep.prune_after_trials=1"]
    done = sweep("sweep=robust", "evaluation=quick", *few, "optimizer.lr=1e-3,1e-4")
    assert done.code == 0, done.err
    plain, shifted, first_of_second = records.runs("train")
    group, second = records.runs("trial")
    assert {"robust/crop/log_loss", "robust/plain/balanced_accuracy"} < plain.data.metrics.keys()
    assert [key for key in shifted.data.metrics if key.startswith("robust/soft/")]
    scores = [run.data.metrics["robust/score"] for run in (plain, shifted, group)]  # of 6 parts, 1 part, all 7
    assert scores[2] == pytest.approx((6 * scores[0] + scores[1]) / 7)
    assert float(group.data.tags["sweep.values"][1:-1]) == pytest.approx(scores[2])
    assert "mean of 7 of 12 parts" in done.err
    assert group.data.tags["robust.rests_on"] == "seed 1 plain, seed 1 soft; 1 epochs of 32 pixels, all images"
    assert asked == [["seed 1 plain"]]  # of the second trial: before the first is complete, there is nothing to compare
    assert second.data.tags["sweep.state"] == "PRUNED"
    [[complete, pruned]] = [records.trials(group.data.tags["sweep.name"])]
    assert complete.intermediate_values == pytest.approx({1: scores[0], 2: scores[2]})
    assert list(pruned.intermediate_values) == [1]
    assert first_of_second.data.tags["sweep.replicate"] == "seed 1 plain"

    done = sweep("sweep=robust", "sweep.shifts=[dark]")
    assert done.code == 2
    assert "sweep.scales.dark={}" in done.err
