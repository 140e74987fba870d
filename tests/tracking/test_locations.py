"""Locations are whatever a store's writers set them to: nothing outside is read; a moved store is repaired."""

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from xray_pneumonia.errors import InputError
from xray_pneumonia.tracking.locations import inside, local_folder, repair_moved, sqlite_path, sqlite_uri
from xray_pneumonia.tracking.run import start_run
from xray_pneumonia.tracking.store import Store, TrackingSettings, open_database, open_store
from xray_pneumonia.tracking.stored_runs import read_run


@pytest.fixture
def store(tmp_path):
    (tmp_path / "home/artifacts/xray/abc/artifacts").mkdir(parents=True)
    (tmp_path / "home/secret").mkdir()
    return Store(f"sqlite:///{tmp_path}/home/mlflow.db", "1", "xray", tmp_path / "home")


def where(store, uri, within=None):
    home = (store.home / "artifacts/xray").as_uri()
    return local_folder(uri, store_uri=store.uri, home=store.home, within=within or home, origin="run_id=abc")


def test_a_run_of_the_store(store):
    folder = store.home / "artifacts/xray/abc/artifacts"
    assert where(store, folder.as_uri()) == folder
    assert where(store, str(folder)) == folder


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc",
        "/etc",
        "file:///",
        "HOME/artifacts/xray/../../secret",
        "HOME/artifacts/xray/%2e%2e/%2e%2e/secret",
        "HOME/artifacts/xray/abc/../../../secret",
        "HOME/artifacts/xray",
        "HOME/artifacts/xray2/abc",
        "HOME/secret",
        "file://evil.example/share/artifacts",
        "http://evil.example/artifacts/xray/abc",
        "s3://bucket/xray/abc",
        "mlflow-artifacts:/../1/abc",
    ],
)
def test_places_outside_are_refused(store, uri):
    with pytest.raises(InputError, match=r"outside|another machine"):
        where(store, uri.replace("HOME", store.home.as_uri()))


def test_an_experiment_that_points_outside_the_store_is_refused_too(store):
    for uri, within in (("file:///etc/ssl", "file:///etc"), ("file:///etc/x", "file:///")):
        with pytest.raises(InputError, match="outside of the store"):
            where(store, uri, within)


def test_a_link_out_of_the_store_is_refused(store, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (store.home / "artifacts/xray/link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="outside"):
        where(store, (store.home / "artifacts/xray/link").as_uri())


@pytest.mark.parametrize("within", ["s3://bucket/mlruns/1", "mlflow-artifacts:/1"])
def test_an_object_store_is_left_to_mlflow_within_the_experiment(tmp_path, within):
    server = Store("http://127.0.0.1:5000", "1", "xray", tmp_path)
    assert where(server, f"{within}/abc/artifacts", within) is None
    for odd in ("/../2/abc", "/%2e%2e/2/abc", "/%252e%252e/2/abc", "2/abc", ""):
        with pytest.raises(InputError, match="outside"):
            where(server, within + odd, within)


def test_a_server_cannot_make_us_read_our_own_disk(tmp_path):
    server = Store("http://127.0.0.1:5000", "1", "xray", tmp_path / "home")
    with pytest.raises(InputError, match="outside of the store"):
        where(server, "file:///etc/ssl", "file:///etc")


def test_files_of_a_run_stay_in_it(store):
    folder = store.home / "artifacts/xray/abc/artifacts"
    (folder / "config.yaml").write_text("a: 1")
    (folder / "link.yaml").symlink_to("/etc/passwd")
    assert inside(folder, "config.yaml", origin="x").read_text() == "a: 1"
    for name in ("link.yaml", "../../../../secret", "/etc/passwd"):
        with pytest.raises(InputError, match="outside"):
            inside(folder, name, origin="x")
    with pytest.raises(InputError, match="no artifact"):
        inside(folder, "gone", origin="x")


SETTINGS = TrackingSettings(uri=None, experiment_name="x", run_name=None, system_metrics=False, required=False)


@pytest.fixture
def run(tmp_path):
    with start_run(open_store(SETTINGS, home=tmp_path / "first"), name="one", tags={}, system_metrics=False) as run:
        run.log_config("a: 1\n")
    return run


def files(home):
    return {path for path in (home / "artifacts").rglob("*")}


@pytest.mark.parametrize("connect", [open_store, open_database])
@pytest.mark.parametrize("name", ["second", "a second?#%20"])
def test_a_copied_store_reads_its_own_files_and_writes_no_other(run, tmp_path, connect, name):
    shutil.copytree(tmp_path / "first", tmp_path / name)
    before = files(tmp_path / "first")
    there = connect(SETTINGS, home=tmp_path / name)
    assert read_run(there, run.run_id).folder.is_relative_to(tmp_path / name)
    with start_run(open_store(SETTINGS, home=tmp_path / name), name="two", tags={}, system_metrics=False) as other:
        other.log_config("a: 2\n")
    assert other.folder.is_relative_to(tmp_path / name)
    assert files(tmp_path / "first") == before
    assert read_run(open_store(SETTINGS, home=tmp_path / "first"), run.run_id).folder.is_relative_to(tmp_path / "first")


def test_a_moved_store_that_cannot_be_written_is_named(run, tmp_path, monkeypatch):
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pytest.raises(InputError, match=r"second.*was moved.*not writable"):
        open_database(SETTINGS, home=tmp_path / "second")


def places(home):
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as database:
        return [row for row in database.execute("SELECT artifact_location FROM experiments ORDER BY 1")]


def test_a_store_whose_files_lie_elsewhere_on_purpose_stays_as_it_is(run, tmp_path):
    (tmp_path / "second").mkdir()
    shutil.copy(tmp_path / "first/mlflow.db", tmp_path / "second/mlflow.db")
    before = places(tmp_path / "second")
    for _ in range(2):
        repair_moved(sqlite_uri(tmp_path / "second/mlflow.db"), tmp_path / "second")
        (tmp_path / "second/artifacts").mkdir(exist_ok=True)
    assert places(tmp_path / "second") == before


def test_what_is_no_database_of_ours_is_left_alone(tmp_path):
    (tmp_path / "artifacts").mkdir()
    for content in (b"", b"hello", b"SQLite format 3\0"):
        (tmp_path / "mlflow.db").write_bytes(content)
        repair_moved(sqlite_uri(tmp_path / "mlflow.db"), tmp_path)
        assert (tmp_path / "mlflow.db").read_bytes() == content
    repair_moved("sqlite:////nowhere/mlflow.db", Path("/nowhere"))


@pytest.mark.parametrize("name", ["plain", "a b", "what?", "no#1", "100%25", "é"])
def test_the_uri_of_a_folder_with_any_name(tmp_path, name):
    path = tmp_path / name / "mlflow.db"
    assert sqlite_path(sqlite_uri(path)) == path
