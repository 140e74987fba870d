"""A store that loses a run which it had is given it again, and a run that was deleted is kept here (kind C)."""

import shutil
from itertools import count

import pytest

from xray_pneumonia.tracking import run as runs
from xray_pneumonia.tracking import stored_runs, sync
from xray_pneumonia.tracking.spool import spools
from xray_pneumonia.tracking.store import TrackingSettings, mlflow_client, open_store
from xray_pneumonia.tracking.stored_runs import find_run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of MLflow, about the model
NAMES = map("lost{}".format, count())


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A home whose database has no run in it: making one takes a second."""
    home = tmp_path_factory.mktemp("empty") / "mlruns"
    settings = TrackingSettings(uri=None, experiment_name="x", run_name=None, system_metrics=False, required=False)
    open_store(settings, home=home)
    return home


@pytest.fixture
def store(empty, tmp_path):
    shutil.copytree(empty, tmp_path / "mlruns")
    settings = TrackingSettings(
        uri=None, experiment_name=next(NAMES), run_name=None, system_metrics=False, required=False
    )
    return open_store(settings, home=tmp_path / "mlruns")


def begin(store, run_id=None):
    return runs.start_run(store, name="n", tags={"verb": "train"}, system_metrics=False, run_id=run_id)


def remove(database, copy):
    database.unlink()


def empty_file(database, copy):
    database.write_bytes(b"")


def overwrite(database, copy):
    shutil.copyfile(copy, database)


def swap(database, copy):
    copy.replace(database)


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "model.json").write_text("{}")
    return tmp_path / "bundle"


def log_start(run):
    run.log_config("seed: 0\n")
    run.log_params({"a": 1})
    run.log_dataset(name="xrays", digest="d" * 64, source="/data", stage="train")
    run.log_metrics({"val/auroc": 0.1}, step=1)
    run.sender.settle(20)


def log_rest(run, bundle, lose=lambda: None):
    run.log_metrics({"val/auroc": 0.2}, step=2)
    run.log_model(bundle, epoch=2, loader_module="json")
    run.sender.settle(20)
    lose()
    run.log_metrics({"val/auroc": 0.3}, step=3)
    run.set_tags({"late": "1"})
    run.path("figures/a.png").write_bytes(b"picture")


def require_whole(store, run):
    assert not spools(store.home)
    found = find_run(store, run.run_id)
    client, run_id = store.client, found.info.run_id
    assert (found.info.status, found.data.params) == ("FINISHED", {"a": "1"})
    assert {"verb", "config_sha256", "late"} <= {*found.data.tags}
    assert [one.step for one in client.get_metric_history(run_id, "val/auroc")] == [1, 2, 3]
    assert found.inputs.dataset_inputs[0].dataset.digest == "d" * 36
    assert {one.path for one in client.list_artifacts(run_id)} == {"config.yaml", "figures"}
    assert str(client.get_logged_model(found.data.tags["model_id"]).status) == "READY"
    [listed] = client.search_runs([found.info.experiment_id])
    assert listed.info.run_id == run_id


@pytest.mark.parametrize(
    ("damage", "epochs"), [(remove, 0), (empty_file, 0), (overwrite, 0), (overwrite, 1), (swap, 0), (swap, 1)]
)
def test_a_database_lost_during_a_run_gets_all_of_it_again(store, bundle, tmp_path, damage, epochs):
    database, copy = tmp_path / "mlruns" / "mlflow.db", tmp_path / "older.db"
    shutil.copyfile(database, copy)
    with begin(store) as run:
        log_start(run)
        if epochs:
            shutil.copyfile(database, copy)
        log_rest(run, bundle, lambda: damage(database, copy))
    if spools(store.home):  # the file that MLflow has open is not the one of this name
        assert [one.problem for one in sync.sync(store.uri, store.home)] == [""]
    require_whole(store, run)


@pytest.mark.parametrize("damage", [remove, empty_file])
def test_a_database_lost_after_a_run_that_waits_is_given_it_by_sync(xray, store, bundle, tmp_path, monkeypatch, damage):
    with begin(store) as run:
        log_start(run)
        monkeypatch.setattr(type(store.client), "log_batch", lambda *_, **__: (_ for _ in ()).throw(OSError("away")))
        log_rest(run, bundle)
    monkeypatch.undo()
    damage(tmp_path / "mlruns" / "mlflow.db", None)
    outcome = xray("doctor", "sync", f"home={store.home}")
    assert outcome.code == 0, outcome.err
    require_whole(store, run)


def test_a_database_lost_after_a_resumption_gets_what_was_logged_before(store, bundle, tmp_path):
    with begin(store) as run:
        log_start(run)
    with begin(store, run.run_id) as again:
        (tmp_path / "mlruns" / "mlflow.db").unlink()
        log_rest(again, bundle)
    require_whole(store, run)


@pytest.mark.parametrize("what", ["experiment", "run", "experiment alone"])
def test_what_is_deleted_during_a_run_is_kept_until_it_is_restored(store, bundle, caplog, what):
    client, experiment = mlflow_client(store.uri), store.experiment_id
    with begin(store) as run:
        log_start(run)
        client.delete_run(run.run_id) if what == "run" else client.delete_experiment(experiment)
        if what == "experiment alone":
            client.restore_run(run.run_id)
        log_rest(run, bundle)
    assert "restore" in caplog.text
    assert client.get_run(run.run_id).info.status == "RUNNING"
    client.restore_run(run.run_id) if what == "run" else client.restore_experiment(experiment)
    assert [one.problem for one in sync.sync(store.uri, store.home)] == [""]
    require_whole(store, run)


def test_a_clock_that_is_set_back_changes_no_duration(store, monkeypatch):
    with begin(store) as run:
        run.log_metrics({"val/auroc": 0.1}, step=1)
        monkeypatch.setattr("time.time", lambda real=runs.now: real() / 1000 - 86400)
        run.log_metrics({"val/auroc": 0.2}, step=2)
    monkeypatch.undo()
    info = store.client.get_run(run.run_id).info
    first, second = (one.timestamp for one in store.client.get_metric_history(run.run_id, "val/auroc"))
    assert info.start_time <= first <= second <= info.end_time <= info.start_time + 60_000


def test_a_run_that_another_process_ends_after_the_clock_was_set_back_ends_after_its_start(store):
    start = runs.now() + 86_400_000
    run_id = store.client.create_run(store.experiment_id, start_time=start).info.run_id
    spool = runs.Spool(store.home / "journal" / run_id)
    spool.append(("run", {"start": start}))
    assert sync.closing_entries(store, spool, "KILLED", "")[-1][1]["time"] == start
    stored_runs.close(store, run_id, status="KILLED", reason="gone")
    assert store.client.get_run(run_id).info.end_time == start
