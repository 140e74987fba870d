"""The store: which one, created once, refused when it is none."""

import sqlite3

import pytest

from xray_pneumonia.errors import InputError
from xray_pneumonia.masking import masked
from xray_pneumonia.tracking.store import TrackingSettings, open_store, resolve_uri
from xray_pneumonia.tracking.store_errors import StoreUnavailable, classified, query, require_not_just_unavailable


def settings(**changes):
    facts = {"uri": None, "experiment_name": "tests", "run_name": None, "system_metrics": False, "required": False}
    return TrackingSettings(**(facts | changes))


def test_one_documented_precedence(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5999")
    assert resolve_uri("sqlite:////x/y.db", tmp_path) == "sqlite:////x/y.db"
    assert resolve_uri(None, tmp_path) == "http://127.0.0.1:5999"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert resolve_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


def test_the_default_is_absolute_wherever_a_command_starts(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    assert resolve_uri(None, Path("mlruns")) == f"sqlite:///{tmp_path}/mlruns/mlflow.db"


@pytest.mark.parametrize(
    ("uri", "hint"),
    [("file:./mlruns", "sqlite:///"), ("mlruns", "sqlite:///"), ("postgres://me:secret@h/db", "postgresql://")],
)
def test_wrong_uris_come_with_the_right_one(tmp_path, uri, hint):
    with pytest.raises(InputError) as caught:
        resolve_uri(uri, tmp_path)
    assert hint in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_store_that_did_not_answer_is_asked_again_after_it_answered():
    uri = "http://127.0.0.1:5999"

    def refuse():
        raise ConnectionError("refused")

    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            query(uri, refuse)
        with pytest.raises(StoreUnavailable):
            require_not_just_unavailable(uri)
        require_not_just_unavailable(uri)  # once said, it is asked again
    with pytest.raises(StoreUnavailable):
        query(uri, refuse)
    assert query(uri, lambda: "runs") == "runs"
    require_not_just_unavailable(uri)


def test_the_ui_opens_on_training_runs(tmp_path):
    store = open_store(settings(), home=tmp_path)
    tags = store.client.get_experiment(store.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_start_that_is_killed_while_tables_are_made_leaves_no_database(tmp_path, monkeypatch):
    from mlflow.store.db import utils

    with monkeypatch.context() as patch:
        make = utils._initialize_tables
        patch.setattr(utils, "_initialize_tables", lambda engine: make(engine) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            open_store(settings(), home=tmp_path)
    assert not (tmp_path / "mlflow.db").exists()
    (tmp_path / ".mlflow.db.1.tmp-journal").touch()
    assert open_store(settings(), home=tmp_path).experiment_id
    assert sorted(tmp_path.glob("*.db*")) == [tmp_path / "mlflow.db"]
    assert not [*tmp_path.glob(".mlflow*")]


def test_tables_that_are_half_made_are_named_with_the_cure():
    error = RuntimeError("(sqlite3.OperationalError) table model_version_tags already exists")
    assert "move it away" in str(refusal := classified(error, uri="sqlite:////x/mlflow.db"))
    assert not isinstance(refusal, StoreUnavailable)


def test_passwords_are_masked():
    assert masked("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"


@pytest.mark.parametrize("damage", ["text", "empty", "folder"])
def test_what_is_no_database_is_left_as_it_is(tmp_path, damage):
    path = tmp_path / "mlflow.db"
    if damage == "folder":
        path.mkdir()
    else:
        path.write_text("my diary" if damage == "text" else "")
    with pytest.raises(InputError, match="no SQLite database"):
        open_store(settings(uri=f"sqlite:///{path}"), home=tmp_path)
    assert path.is_dir() or path.read_text() in {"my diary", ""}


def test_a_database_of_another_version_is_not_touched(home, tmp_path):
    import shutil

    open_store(settings(), home=home)
    shutil.copy(home / "mlflow.db", tmp_path / "mlflow.db")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'from_the_future'")
    database.close()
    before = (tmp_path / "mlflow.db").read_bytes()
    with pytest.raises(InputError, match="mlflow db upgrade"):
        open_store(settings(uri=f"sqlite:///{tmp_path / 'mlflow.db'}"), home=tmp_path)
    assert (tmp_path / "mlflow.db").read_bytes() == before


def test_a_deleted_experiment_is_said_with_the_cure(home):
    store = open_store(settings(experiment_name="gone"), home=home)
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(InputError, match="mlflow experiments restore"):
        open_store(settings(experiment_name="gone"), home=home)


def test_artifacts_lie_beside_the_database(home):
    store = open_store(settings(experiment_name="odd/../name é"), home=home)
    location = store.client.get_experiment(store.experiment_id).artifact_location
    assert location.startswith((home / "artifacts").as_uri())
    assert ".." not in location.removeprefix((home / "artifacts").as_uri()).split("/")
