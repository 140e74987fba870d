"""A store that was moved, and one that was copied."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from xray_pneumonia.tracking.moved import follow
from xray_pneumonia.tracking.run import start_run
from xray_pneumonia.tracking.store import TrackingSettings, open_store
from xray_pneumonia.tracking.stored_runs import read_run

SETTINGS = {"uri": None, "experiment_name": "x", "run_name": None, "system_metrics": False, "required": False}
KNOWN = {key: value for key, value in SETTINGS.items() if key in TrackingSettings.__dataclass_fields__}


def store_at(home):
    return open_store(TrackingSettings(**KNOWN), home=home)


@pytest.fixture
def run(tmp_path):
    with start_run(store_at(tmp_path / "first"), name="one", tags={}, system_metrics=False) as run:
        run.log_config("a: 1\n")
    return run


def test_a_copied_store_reads_its_own_files_and_writes_no_other(run, tmp_path):
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    before = {path for path in (tmp_path / "first").rglob("*") if "artifacts" in path.parts}
    there = store_at(tmp_path / "second")
    assert read_run(there, run.run_id).folder.is_relative_to(tmp_path / "second")
    with start_run(there, name="two", tags={}, system_metrics=False) as other:
        other.log_config("a: 2\n")
    assert other.folder.is_relative_to(tmp_path / "second")
    assert {path for path in (tmp_path / "first").rglob("*") if "artifacts" in path.parts} == before
    assert read_run(store_at(tmp_path / "first"), run.run_id).folder.is_relative_to(tmp_path / "first")


def places(home):
    with sqlite3.connect(home / "mlflow.db") as database:
        return [row for row in database.execute("SELECT artifact_location FROM experiments ORDER BY 1")]


def test_a_store_whose_files_lie_elsewhere_on_purpose_stays_as_it_is(run, tmp_path):
    (tmp_path / "second").mkdir()
    shutil.copy(tmp_path / "first/mlflow.db", tmp_path / "second/mlflow.db")
    before = places(tmp_path / "second")
    follow(tmp_path / "second/mlflow.db")
    (tmp_path / "second/artifacts").mkdir()
    follow(tmp_path / "second/mlflow.db")
    assert places(tmp_path / "second") == before


def test_what_is_no_database_of_ours_is_left_alone(tmp_path):
    (tmp_path / "artifacts").mkdir()
    for content in (b"", b"hello", b"SQLite format 3\0"):
        (tmp_path / "mlflow.db").write_bytes(content)
        follow(tmp_path / "mlflow.db")
        assert (tmp_path / "mlflow.db").read_bytes() == content
    follow(Path("/nowhere/mlflow.db"))
