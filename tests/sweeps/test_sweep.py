"""Real sweeps, run by the real command."""

import csv
import json
import os
import sqlite3
import subprocess
import sys
from urllib.parse import unquote

import optuna
import pytest
from mlflow import MlflowClient

from xray_pneumonia import cli


@pytest.fixture
def xray(tmp_path, monkeypatch, capfd):
    """Run the command in this process, which spares an import of all libraries."""

    def run(*arguments, verb="train"):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["xray", verb, *arguments])
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        code = cli.main()
        out, err = capfd.readouterr()
        return code, out, err

    return run


def runs(home, verb):
    client = MlflowClient(f"sqlite:///{home}/mlruns/mlflow.db")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return [run for run in client.search_runs(ids, order_by=["start_time ASC"]) if run.data.tags["verb"] == verb]


def study(home, name):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{home}/mlruns/sweeps.db")


def test_a_grid_is_one_parent_run_and_a_failing_point_does_not_end_it(xray, small, tmp_path):
    code, out, err = xray("-m", *small, "data.batch_size=0,64", "sweep.name=grid")
    assert code == 0, err
    [parent] = runs(tmp_path, "sweep")
    assert parent.info.status == "FINISHED"
    assert out.splitlines()[-1].startswith(f"sweep_id={parent.info.run_id} trials=1 val/auroc=")
    children = runs(tmp_path, "train")
    assert [run.info.status for run in children] == ["FAILED", "FINISHED"]
    assert [run.data.tags["override.data.batch_size"] for run in children] == ["0", "64"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert "data.batch_size=0" in children[0].data.tags["reason"]
    folder = tmp_path / "mlruns" / "artifacts" / "xray" / parent.info.run_id / "artifacts"
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["fail", "complete"]
    assert json.loads((folder / "space.json").read_text())["space"] == {"data.batch_size": "0,64"}
    assert float(rows[1]["val/auroc"]) == pytest.approx(study(tmp_path, "grid").best_value, abs=1e-6)

    for changed, message in (
        (["data.batch_size=64,16"], "space.data.batch_size: was 0,64, now 64,16"),
        (["data.batch_size=0,64", "model.dropout=0.1"], "fixed.model.dropout: was absent, now 0.1"),
    ):
        code, _, err = xray("-m", *small, *changed, "sweep.name=grid")
        assert code == 2
        assert message in err

    code, out, _ = xray(verb="sweeps")
    assert code == 0
    assert "1 of 2" in out


def test_a_sweep_of_which_nothing_can_run_blames_the_input(xray, small, tmp_path):
    code, _, err = xray("-m", *small, "data.batch_size=0,-1", "sweep.max_failures=null")
    assert code == 2
    assert "no trial could run; trial 0: InputError: data.batch_size=0" in err
    [parent] = runs(tmp_path, "sweep")
    assert parent.info.status == "FAILED"


@pytest.mark.long
def test_what_failed_is_tried_again_and_what_is_done_stays(xray, small, tmp_path):
    arguments = ["-m", *small, "data.batch_size=64,0,32", "sweep.name=grid"]
    assert xray(*arguments)[0] == 0
    assert len(runs(tmp_path, "train")) == 3
    code, out, err = xray(*arguments, "sweep.max_failures=0")
    assert code == 1, out
    assert "sweep.max_failures=0" in err
    children = runs(tmp_path, "train")
    assert len(children) == 4
    assert children[-1].data.tags["override.data.batch_size"] == "0"
    assert len(runs(tmp_path, "sweep")) == 1

    code, out, _ = xray("sweep_name=grid", "format=csv", verb="compare")
    assert code == 0
    assert "data.batch_size" in out
    assert "DeLong" in out
    assert (tmp_path / "mlruns" / "comparison" / "xray" / "learning_curves.png").stat().st_size > 4_000
    code, out, _ = xray("sweep_name=grid", verb="compare")
    ids = [run.info.run_id for run in children if run.info.status == "FINISHED"]
    assert f'compare-runs?runs=["{ids[0]}","{ids[1]}"]' in unquote(out)


def test_wrong_input_makes_nothing(xray, tmp_path):
    for arguments, message in (
        (["optimizer.lrr=1,2"], "did you mean optimizer.lr"),
        (["model=resnet,resnett"], "did you mean resnet"),
        (["optimizer.lr=1e-3"], "nothing to sweep over"),
        (["optimizer.lr=1e-3,1e-4", "monitor=val/aurocc"], "monitor='val/aurocc': should be"),
        (["optimizer.lr=1e-3,1e-4", "sweep.objectives={val/dice:max}"], "val/dice"),
    ):
        code, _, err = xray("-m", *arguments)
        assert code == 2, err
        assert message in err
    code, _, err = xray("sweep=optimizer", "data=synthetic")
    assert code == 2
    assert "needs -m" in err
    assert not (tmp_path / "mlruns" / "sweeps.db").exists()


def damaged(path, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "text":
        path.write_text("not a database at all\n")
    elif kind == "folder":
        path.mkdir()
    elif kind == "foreign":
        with sqlite3.connect(path) as connection:
            connection.execute("create table alembic_version (version_num text)")
            connection.execute("insert into alembic_version values ('cafe0123')")
        connection.close()
    elif kind == "newer":
        from optuna.storages import RDBStorage

        storage = RDBStorage(f"sqlite:///{path}")
        storage.engine.dispose()
        with sqlite3.connect(path) as connection:
            connection.execute("update alembic_version set version_num = 'v99.0.0'")
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
def test_a_database_that_cannot_serve_is_refused_and_not_altered(xray, small, tmp_path, kind, message):
    path = tmp_path / "mlruns" / "sweeps.db"
    damaged(path, kind)
    before = path.read_bytes() if path.is_file() else None
    code, _, err = xray("-m", *small, "data.batch_size=64,32")
    assert code == 2, err
    assert message in err
    assert "sweep.storage=" in err
    assert before == (path.read_bytes() if path.is_file() else None)


@pytest.mark.parametrize("url", ["postgres://me:secret@host/db", "mysql://me:secret@host/db", "file:./x"])
def test_an_unusable_url_is_refused_without_its_password(xray, small, url):
    code, _, err = xray("-m", *small, "data.batch_size=64,32", f"sweep.storage='{url}'")
    assert code == 2
    assert "sweep.storage=" in err
    assert "secret" not in err


@pytest.mark.long
def test_pruning_replicates_and_the_best_config(xray, small, tmp_path):
    arguments = ["-m", *small, "trainer.max_epochs=3", "trainer.patience=null", "optimizer.lr=1e-6,1e-2,2e-6,3e-6"]
    code, _, err = xray(*arguments, "sweep.seeds=[1,2]", "sweep.name=seeds")
    assert code == 0, err
    groups = runs(tmp_path, "trial")
    assert len(groups) == 4
    complete = [t for t in study(tmp_path, "seeds").trials if t.state.name == "COMPLETE"]
    for group in groups:
        members = [r for r in runs(tmp_path, "train") if r.data.tags["mlflow.parentRunId"] == group.info.run_id]
        values = [json.loads(run.data.tags["sweep.values"])[0] for run in members]
        assert group.data.metrics["val/auroc"] == pytest.approx(sum(values) / len(values))
        assert group.data.metrics["val/auroc_replicates"] == len(values)
        if group.data.tags["sweep.state"] == "COMPLETE":
            assert len(values) == 2
            assert group.data.metrics["val/auroc_sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
            assert any(t.value == pytest.approx(group.data.metrics["val/auroc"]) for t in complete)

    [parent] = runs(tmp_path, "sweep")
    folder = tmp_path / "mlruns" / "artifacts" / "xray" / parent.info.run_id / "artifacts"
    for kind in ("optimization_history", "param_importances", "parallel_coordinate", "slice"):
        assert (folder / "plots" / f"{kind}.png").stat().st_size > 2_000, kind
    assert "plotly" in (folder / "plots.html").read_text()
    code, _, err = xray(f"experiment={folder / 'best.yaml'}", "tracking.system_metrics=false")
    assert code == 0, err
    trained = runs(tmp_path, "train")[-1]
    winner = max(complete, key=lambda trial: trial.value)
    assert float(trained.data.params["optimizer.lr"]) == float(winner.params["optimizer.lr"])
    assert trained.data.params["model.width"] == "4"
    assert "sweep.name" not in trained.data.params

    code, _, err = xray(
        "-m",
        *small,
        "trainer.max_epochs=4",
        "trainer.patience=null",
        "optimizer.lr=interval(1e-6,1e-2)",
        "sweep.n_trials=5",
        "sweep.pruner=median",
        "sweep.prune_after_trials=1",
        "sweep.name=pruned",
        "sweep.first=[{optimizer.lr:1e-2},{optimizer.lr:1e-6}]",
    )
    assert code == 0, err
    trials = study(tmp_path, "pruned").trials
    assert [t.params["optimizer.lr"] for t in trials[:2]] == [1e-2, 1e-6]
    pruned = [t for t in trials if t.state.name == "PRUNED"]
    assert pruned
    for trial in pruned:
        [run] = [r for r in runs(tmp_path, "train") if r.data.tags.get("sweep.trial_id") == str(trial._trial_id)]
        assert run.info.status == "FINISHED"
        assert run.data.tags["sweep.state"] == "PRUNED"
        assert max(trial.intermediate_values) < 4


@pytest.mark.long
def test_workers_share_one_study(command, tmp_path):
    arguments = ["optimizer.lr=interval(1e-4,1e-2)", "sweep.n_trials=6", "sweep.name=team", "workers=3"]
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    trials = study(tmp_path, "team").trials
    assert [(t.number, t.state.name) for t in trials] == [(number, "COMPLETE") for number in range(6)]
    assert len({t.user_attrs["worker"]["pid"] for t in trials}) > 1
    [parent] = runs(tmp_path, "sweep")
    assert parent.info.status == "FINISHED"
    children = runs(tmp_path, "train")
    assert sorted(int(run.data.tags["sweep.trial"]) for run in children) == list(range(6))
    assert done.stdout.splitlines()[-1].startswith(f"sweep_id={parent.info.run_id} trials=6 ")


def test_a_run_that_the_store_kept_open_ends_as_its_trial_did(xray, small, tmp_path):
    arguments = ["-m", *small, "data.batch_size=0,64", "sweep.name=grid"]
    assert xray(*arguments)[0] == 0
    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    for run in runs(tmp_path, "train"):
        client.update_run(run.info.run_id, status="RUNNING")
    assert xray(*arguments, "sweep.max_failures=null")[0] == 0
    by_trial = {run.data.tags["sweep.trial"]: run.info.status for run in runs(tmp_path, "train")}
    assert by_trial == {"0": "FAILED", "1": "FINISHED", "2": "FAILED"}  # trial 2 is 0 once more


@pytest.mark.slow
def test_two_sweeps_of_one_name_at_once_are_one(command, tmp_path):
    sweep = [*command, "optimizer.lr=tag(log,interval(1e-4,1e-2))", "sweep.n_trials=6", "sweep.name=twins"]
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    twins = [
        subprocess.Popen(
            sweep, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [twin.communicate(timeout=600) for twin in twins]
    assert [twin.returncode for twin in twins] == [0, 0], said
    trials = study(tmp_path, "twins").trials
    assert [(t.number, t.state.name) for t in trials] == [(number, "COMPLETE") for number in range(6)]
    assert {t.user_attrs["worker"]["pid"] for t in trials} == {twin.pid for twin in twins}
    [parent] = runs(tmp_path, "sweep")
    assert parent.info.status == "FINISHED"
    assert sorted(int(run.data.tags["sweep.trial"]) for run in runs(tmp_path, "train")) == list(range(6))
    assert [out.splitlines()[-1].split()[0] for out, _ in said] == [f"sweep_id={parent.info.run_id}"] * 2
