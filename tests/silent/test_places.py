"""A folder of any name keeps its store, its artifacts and its studies, and nothing appears beside it (kind D)."""

import shutil
from dataclasses import replace

import pytest
from mlflow import MlflowClient

from xray_pneumonia.errors import InputError
from xray_pneumonia.sweeps.storage import open_storage, resolve
from xray_pneumonia.tracking.locations import sqlite_uri
from xray_pneumonia.tracking.run import start_run
from xray_pneumonia.tracking.store import TrackingSettings, open_store, resolve_uri
from xray_pneumonia.tracking.stored_runs import read_run

ODD = "what? #1 100%25 é;[x]&a=b"
SETTINGS = TrackingSettings(uri=None, experiment_name="odd?#%25", run_name=None, system_metrics=False, required=False)


def test_a_home_of_any_name_keeps_store_artifacts_and_studies(home, tmp_path):
    open_store(replace(SETTINGS, experiment_name="xray"), home=home)
    place = tmp_path / ODD / "mlruns"
    place.mkdir(parents=True)
    shutil.copy(home / "mlflow.db", place)  # to make one takes seconds
    store = open_store(SETTINGS, home=place)
    with start_run(store, name="it", tags={}, system_metrics=False) as run:
        run.log_config("seed: 1\n")
        run.path("odd?#%25 é.txt").write_text("x")
    open_storage(resolve(None, place)).engine.dispose()
    assert {each.name for each in tmp_path.iterdir()} == {ODD}
    assert {"mlflow.db", "sweeps.db", "artifacts"} <= {each.name for each in place.iterdir()}
    assert read_run(store, run.run_id).artifact("config.yaml").read_text() == "seed: 1\n"
    listed = MlflowClient(store.uri).list_artifacts(run.run_id)  # as the UI does
    assert [each.path for each in listed if each.path.endswith(".yaml")] == ["config.yaml"]


def test_an_address_that_a_sign_cuts_short_is_refused(tmp_path):
    with pytest.raises(InputError, match="%3F"):
        resolve_uri(f"sqlite:///{tmp_path}/what?/mlflow.db", tmp_path)
    assert resolve_uri(sqlite_uri(tmp_path / "what?" / "mlflow.db"), tmp_path).endswith("what%3F/mlflow.db")
