"""Runs and models that somebody altered in a shared store: nothing of them is run, read or followed elsewhere."""

import hashlib
import json
import sqlite3
import struct
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from safetensors.torch import save_file

from xray_pneumonia.errors import InputError
from xray_pneumonia.inference.bundle import read_bundle
from xray_pneumonia.masking import masked
from xray_pneumonia.stored_config import MAX_BYTES, stored_text
from xray_pneumonia.tracking.locations import ArtifactMissing
from xray_pneumonia.tracking.run import start_run
from xray_pneumonia.tracking.store import TrackingSettings, open_store
from xray_pneumonia.tracking.stored_runs import get, read_run

SETTINGS = {
    "uri": None,
    "experiment_name": "../../security",
    "run_name": None,
    "system_metrics": False,
    "required": False,
}


@pytest.fixture(scope="module")
def store(home):
    known = {key: value for key, value in SETTINGS.items() if key in TrackingSettings.__dataclass_fields__}
    return open_store(TrackingSettings(**known), home=home)


@pytest.fixture(scope="module")
def text():
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        cfg = compose("train", ["data.root=x"])
    return stored_text(cfg)


@pytest.fixture
def stored(store, text):
    with start_run(store, name="../../../evil <script>", tags={"verb": "train"}, system_metrics=False) as run:
        run.log_config(text)
    return run


def refused(store, run_id, *words):
    with pytest.raises(InputError) as caught:
        read_run(store, run_id)
    for word in words:
        assert word in str(caught.value), caught.value


def alter(home, statement, *values):
    with sqlite3.connect(home / "mlflow.db") as database:
        assert database.execute(statement, values).rowcount > 0


def test_names_of_experiments_and_runs_lead_nowhere(store, stored, home):
    """T12."""
    read = read_run(store, stored.run_id)
    assert stored.folder.resolve().is_relative_to((home / "artifacts").resolve())
    assert read.folder == stored.folder.resolve()


def test_two_configs_none_and_a_deleted_run(store, stored):
    """(c) 46."""
    (stored.folder / "config.yml").write_text("a: 1")
    refused(store, stored.run_id, stored.run_id, "config.yml", "sqlite")
    (stored.folder / "config.yml").unlink()
    (stored.folder / "config.yaml").unlink()
    refused(store, stored.run_id, stored.run_id, "no config", "sqlite")
    store.client.delete_run(stored.run_id)
    refused(store, stored.run_id, "was deleted")


RUN_IDS = (
    "abc", "", "0" * 31, "0" * 33, "0" * 32 + "\n", "../../etc", "%2e%2e", "#", "0" * 31 + "G", "\u0660" * 32,
    "' or 1=1 --",
)  # fmt: skip


@pytest.mark.parametrize("run_id", RUN_IDS)
def test_run_ids(store, run_id):
    """(c) 50."""
    refused(store, run_id, "32 hex digits")


def test_a_run_that_is_not_there_names_the_store(store):
    refused(store, "0" * 32, "no such run", "mlflow.db")


@pytest.mark.parametrize(
    "place", ["file:///etc", "/etc", "{home}", "{home}/artifacts/../../secret", "https://evil.example"]
)
def test_artifacts_outside_the_store(store, stored, home, place):
    """(c) 66."""
    place = place.format(home=home)
    alter(home, "UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", place, stored.run_id)
    refused(store, stored.run_id, "outside")


def test_comparing_reads_nothing_from_outside_the_store(store, stored, home, tmp_path):
    """(c) 66."""
    assert get(store, stored.run_id).artifact("config.yaml", target=tmp_path).is_file()
    with pytest.raises(ArtifactMissing):
        get(store, stored.run_id).artifact("none.csv", target=tmp_path)
    alter(home, "UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", "file:///etc", stored.run_id)
    with pytest.raises(InputError, match="outside"):
        get(store, stored.run_id).artifact("passwd", target=tmp_path)


def test_an_experiment_that_was_turned_towards_the_system(store, stored, home):
    """(c) 66: both the run and its experiment were altered."""
    before = store.client.get_experiment(store.experiment_id).artifact_location
    change = "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?"
    alter(home, "UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", "file:///etc/ssl", stored.run_id)
    alter(home, change, "file:///etc", int(store.experiment_id))
    try:
        refused(store, stored.run_id, "outside of the store")
    finally:
        alter(home, change, before, int(store.experiment_id))


def test_a_model_outside_the_store(store, stored, home):
    """(c) 66."""
    made = store.client.create_logged_model(store.experiment_id, name="model", source_run_id=stored.run_id)
    store.client.set_tag(stored.run_id, "model_id", made.model_id)
    alter(home, "UPDATE logged_models SET artifact_location = ? WHERE model_id = ?", "file:///etc", made.model_id)
    with pytest.raises(InputError, match="outside"):
        read_run(store, stored.run_id).bundle()


def test_a_config_that_is_a_link(store, stored, tmp_path):
    """T12."""
    (tmp_path / "elsewhere.yaml").write_text("a: 1")
    (stored.folder / "config.yaml").unlink()
    (stored.folder / "config.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    stored.set_tags({"config_sha256": hashlib.sha256(b"a: 1").hexdigest()})
    refused(store, stored.run_id, "outside")


def test_bytes_that_are_not_those_of_the_tag(store, stored, text):
    """(c) 45, T14."""
    (stored.folder / "config.yaml").write_text(text + "\n# and more")
    refused(store, stored.run_id, "not the one this run was started with")
    (stored.folder / "config.yaml").write_bytes(b"x" * (MAX_BYTES + 1))
    refused(store, stored.run_id, "bytes")
    (stored.folder / "config.yaml").write_bytes(b"\xff\xfe")
    store.client.set_tag(stored.run_id, "config_sha256", hashlib.sha256(b"\xff\xfe").hexdigest())
    refused(store, stored.run_id, "no text")


def test_a_run_without_the_tag(store, stored):
    store.client.delete_tag(stored.run_id, "config_sha256")
    refused(store, stored.run_id, "not the one this run was started with")


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    card = {
        "net": {}, "class_names": ["NORMAL", "PNEUMONIA"], "image_size": 32, "temperature": 1.0, "operating_point": 0.5,
        "operating_point_policy": "fixed at 0.5", "records_fingerprint": "", "run_id": "0" * 32,
        "versions": {}, "schema": 1,
    }  # fmt: skip
    (folder / "model.json").write_text(json.dumps(card))
    save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
    read_bundle(folder)
    return folder


def header(text, length=None):
    raw = text.encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw


TENSOR = '{{"a": {{"dtype": "F32", "shape": {shape}, "data_offsets": {offsets}}}}}'
DAMAGED = {  # (c) 56, 57, 61
    "empty": b"",
    "cut": header(TENSOR.format(shape=[2], offsets=[0, 8])) + b"\0" * 4,
    "a header of a gigabyte": header("{}", 2**30),
    "a header beyond all": header("{}", 2**64 - 1),
    "offsets beyond the file": header(TENSOR.format(shape=[2], offsets=[0, 2**40])) + b"\0" * 8,
    "a shape beyond the bytes": header(TENSOR.format(shape=[2**40], offsets=[0, 8])) + b"\0" * 8,
    "overlapping tensors": header(
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},'
        ' "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}'
    ) + b"\0" * 12,
    "no JSON": header("{[") + b"\0" * 8,
    "text": b"<html>not found</html>",
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_weights_that_are_none(bundle, case):
    (bundle / "model.safetensors").write_bytes(DAMAGED[case])
    with pytest.raises(InputError, match="no bundle"):
        read_bundle(bundle)


class Touch:
    """What a malicious pickle does."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_called_safetensors(bundle, tmp_path):
    """(c) 57, T3."""
    canary = tmp_path / "canary"
    torch.save({"a": Touch(canary)}, bundle / "model.safetensors")
    with pytest.raises(InputError, match="no bundle"):
        read_bundle(bundle)
    assert not canary.exists()


@pytest.mark.parametrize("text", ["", "[1]", "{", '"x"', "{}", "[" * 100_000, '{"schema": 99}', "null"])
def test_a_card_that_is_none(bundle, text):
    (bundle / "model.json").write_text(text)
    with pytest.raises(InputError):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["not_a_zip", "cut", "pickle"])
def test_checkpoints_that_are_none(tmp_path, name):
    """(c) 56, 57: refused, and nothing in them is run."""
    from xray_pneumonia.training.checkpoints import AtomicCheckpointIO

    canary, path = tmp_path / "canary", tmp_path / "last.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, path)
    whole = path.read_bytes()
    if name == "pickle":
        torch.save({"state_dict": Touch(canary)}, path)
    else:
        path.write_bytes(b"hello" if name == "not_a_zip" else whole[: len(whole) // 2])
    with pytest.raises(Exception, match=r"."):
        AtomicCheckpointIO().load_checkpoint(path)
    assert not canary.exists()


@pytest.mark.parametrize("place", ["http://127.0.0.1:1/x.ckpt", "s3://bucket/x.ckpt", "file:///etc/passwd"])
def test_checkpoints_come_from_no_network(place, monkeypatch):
    """(c) 58."""
    from xray_pneumonia.training.checkpoints import AtomicCheckpointIO

    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    with pytest.raises(FileNotFoundError):
        AtomicCheckpointIO().load_checkpoint(place)


def test_no_secret_of_the_environment_is_kept_with_a_run(xray, tiny, home, monkeypatch):
    """T8: every file of the store is searched for it."""
    canary = "hush-4711-canary"
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "API_TOKEN"):
        monkeypatch.setenv(name, canary)
    outcome = xray("train", *tiny, "trainer.max_epochs=1")
    assert outcome.code == 0, outcome.err
    assert canary not in outcome.out + outcome.err
    files = [path for path in home.rglob("*") if path.is_file() and "cache" not in path.parts]
    assert len(files) > 10
    assert not [path for path in files if canary.encode() in path.read_bytes()]


def test_passwords_of_uris_are_masked():
    """T8."""
    assert masked("postgresql://u:hush@h/db") == "postgresql://u:***@h/db"
