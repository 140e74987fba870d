"""`xray reproduce`, end to end: the same bits, the band, and what is refused."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from xray_pneumonia.data import datamodule
from xray_pneumonia.training import performance
from xray_pneumonia.workflows.training_record import flatten_circumstances


@pytest.fixture
def client(home):
    return MlflowClient(f"sqlite:///{home}/mlflow.db")


@pytest.fixture
def folder(client):
    return lambda run_id: Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))


TRAINED: dict[Path, str] = {}  # by store; no test may alter it


@pytest.fixture
def train(xray, tiny):
    def once():
        outcome = xray("train", *tiny, "augmentation=light", "model.dropout=0.3", "tracking.experiment_name=reproduced")
        assert outcome.code == 0, outcome.err
        return outcome.run_id

    return once


@pytest.fixture
def trained(train, home):
    return TRAINED.get(home) or TRAINED.setdefault(home, train())


@pytest.fixture
def bundle(client, trained, tmp_path):
    place = client.get_logged_model(client.get_run(trained).data.tags["model_id"]).artifact_location
    card = next(Path(place.removeprefix("file://")).glob("data/**/model.json"))
    return shutil.copytree(card.parent, tmp_path / "bundle")


@pytest.fixture
def again(xray, home):
    return lambda *arguments: xray("reproduce", f"home={home}", *arguments)


@pytest.fixture
def another_training(monkeypatch):
    """Deal the images in another order than any training did."""
    dealt = datamodule.EpochSampler.__iter__

    def shifted(self):
        self._seed += 1000
        try:
            return dealt(self)
        finally:
            self._seed -= 1000

    monkeypatch.setattr(datamodule.EpochSampler, "__iter__", shifted)


def elsewhere(monkeypatch, **changes):
    """Pretend that this is another machine than the one of then."""

    def there(environment):
        return flatten_circumstances(environment) | {key.replace("_", "."): value for key, value in changes.items()}

    monkeypatch.setattr("xray_pneumonia.workflows.reproduce.flatten_circumstances", there)


def verdict(folder, outcome):
    return json.loads((folder(outcome.run_id) / "reproduction/verdict.json").read_text())


def test_the_same_bits(again, trained, client, folder):
    outcome = again(f"run_id={trained}")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == f"run_id={outcome.run_id} verdict=bit-identical"
    assert "promised: the same bits" in outcome.err
    tags = client.get_run(outcome.run_id).data.tags
    assert (tags["verb"], tags["of"], tags["verdict"]) == ("reproduce", trained, "bit-identical")
    assert tags["mlflow.parentRunId"] == trained
    assert client.get_run(outcome.run_id).data.metrics["reproduction/bit_identical"] == 1
    found = verdict(folder, outcome)
    assert found["circumstances"] == {}
    assert (found["epochs"], found["metrics"], found["weights"]["differing"]) == (2, 14, 0)
    names = [name for name in client.get_run(trained).data.metrics if name.startswith(("train/", "val/"))]
    for name in names:
        values = [[m.value for m in client.get_metric_history(one, name)] for one in (trained, outcome.run_id)]
        assert values[0] == values[1]


def test_another_training_is_different_and_says_where_it_departs(again, trained, folder, client, another_training):
    outcome = again(f"run_id={trained}")
    assert outcome.code == 1
    assert "different: departs first in epoch 1, train/loss" in outcome.err
    assert "Traceback" not in outcome.err
    found = verdict(folder, outcome)
    assert (found["first"]["epoch"], found["first"]["metric"]) == (1, "train/loss")
    assert found["weights"]["differing"] > 0
    assert client.get_run(outcome.run_id).data.tags["verdict"] == "different"
    assert client.get_run(outcome.run_id).info.status == "FINISHED"


def test_on_another_machine_the_band_decides(again, trained, folder, monkeypatch, another_training):
    elsewhere(monkeypatch, machine_cpu="another")
    outcome = again(f"run_id={trained}", "band.auroc=0.9", "band.accuracy=0.9")
    assert outcome.code == 0, outcome.err
    assert "promised: the band: val/auroc within 0.9000" in outcome.err
    assert "machine.cpu" in outcome.out
    assert verdict(folder, outcome)["level"] == "within the band"
    outcome = again(f"run_id={trained}", "band.auroc=1e-9", "band.accuracy=1e-9")
    assert outcome.code == 1
    assert verdict(folder, outcome)["level"] == "different"


def test_the_recorded_number_of_threads_is_used(again, trained, folder):
    before = torch.get_num_threads()
    performance.prepare_process(keep_freed_memory=False, threads=3 - min(before, 2))
    try:
        outcome = again(f"run_id={trained}")
    finally:
        torch.set_num_threads(before)
    if before <= 2:
        assert verdict(folder, outcome)["circumstances"] == {}
    assert outcome.code == 0


def test_a_bundle_proves_itself_with_no_store(again, xray, bundle, tmp_path, xrays):
    assert {path.name for path in bundle.iterdir()} >= {"config.yaml", "history.csv", "environment.json"}
    outcome = xray("reproduce", f"model={bundle}", f"home={tmp_path / 'other'}")
    assert outcome.code == 0, outcome.err
    assert "verdict=bit-identical" in outcome.out


def test_a_bundle_whose_weights_or_metrics_were_changed_is_different(again, bundle):
    weights = load_file(bundle / "model.safetensors")
    name = next(name for name, tensor in weights.items() if tensor.dtype == torch.float32 and tensor.dim())
    weights[name].view(torch.int32).reshape(-1)[0] ^= 1
    original = (bundle / "model.safetensors").read_bytes()
    save_file(weights, bundle / "model.safetensors")
    card = json.loads((bundle / "model.json").read_text())
    kept = card.get("weights_sha256")
    if kept:
        digest = hashlib.sha256((bundle / "model.safetensors").read_bytes()).hexdigest()
        (bundle / "model.json").write_text(json.dumps({**card, "weights_sha256": digest}))
    outcome = again(f"model={bundle}")
    assert outcome.code == 1
    assert "departs first in the weights of the kept epoch" in outcome.err
    (bundle / "model.safetensors").write_bytes(original)
    (bundle / "model.json").write_text(json.dumps(card))
    rows = (bundle / "history.csv").read_text().splitlines()
    rows[2] = f"{rows[2].rpartition(',')[0]},{np.nextafter(np.float32(rows[2].rpartition(',')[2]), np.float32(9))}"
    (bundle / "history.csv").write_text("\n".join(rows))
    outcome = again(f"model={bundle}")
    assert outcome.code == 1
    assert f"epoch 2, {rows[2].partition(',')[0]}" in outcome.err


def test_a_bundle_that_does_not_say_where_it_was_trained_promises_the_band_alone(again, bundle):
    (bundle / "environment.json").unlink()
    outcome = again(f"model={bundle}")
    assert outcome.code == 0
    assert "machine: not recorded then" in outcome.err
    (bundle / "history.csv").unlink()
    outcome = again(f"model={bundle}")
    assert outcome.code == 2
    assert "holds no history.csv" in outcome.err


def test_a_registered_model(again, xray, home, trained):
    named = xray("register", f"run_id={trained}", "name=proven", "alias=champion", f"home={home}")
    assert named.code == 0, named.err
    outcome = again("model=proven@champion")
    assert outcome.code == 0, outcome.err
    assert again("model=proven@nobody").code == 2


def test_the_same_images_elsewhere_and_others(again, trained, xrays, tmp_path):
    there = shutil.copytree(xrays, tmp_path / "there")
    outcome = again(f"run_id={trained}", f"data.root={there}")
    assert outcome.code == 0, outcome.err
    assert "verdict=bit-identical" in outcome.out
    image = sorted((there / "train/NORMAL").iterdir())[0]
    image.write_bytes(image.read_bytes() + b"\0")
    outcome = again(f"run_id={trained}", f"data.root={there}")
    assert outcome.code == 2
    assert "not the records of run_id=" in outcome.err
    assert "expected" in outcome.err


def test_an_altered_config_is_not_run_and_neither_is_one_whose_tag_was_altered_too(
    again, train, folder, client, tmp_path
):
    trained = train()
    config = folder(trained) / "config.yaml"
    canary = tmp_path / "canary"
    config.write_text(config.read_text().replace("xray_pneumonia.models.resnet.ResNet", "os.system"))
    outcome = again(f"run_id={trained}")
    assert outcome.code == 2
    assert "not the one this run was started with" in outcome.err
    client.set_tag(trained, "config_sha256", hashlib.sha256(config.read_bytes()).hexdigest())
    outcome = again(f"run_id={trained}")
    assert outcome.code == 2
    assert "model._target_='os.system': not on the list" in outcome.err
    assert not canary.exists()


def test_a_stored_config_cannot_choose_where_anything_is_written(again, xray, tiny, client, folder, tmp_path):
    small = [one for one in tiny if not one.startswith("data.root")]
    run_id = xray("train", *small, "data=synthetic", "data.synthetic_patients=40", "data.image_size=32").run_id
    config, target = folder(run_id) / "config.yaml", tmp_path / "target"
    values = config.read_text()
    for line in values.splitlines():
        if line.strip().startswith(("root:", "cache_dir:", "home:", "uri:")):
            values = values.replace(line, f"{line.partition(':')[0]}: {target}")
    config.write_text(values)
    client.set_tag(run_id, "config_sha256", hashlib.sha256(config.read_bytes()).hexdigest())
    outcome = again(f"run_id={run_id}")
    assert outcome.code == 0, outcome.err
    assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name one of them"),
        (["run_id=abc", "model=x@y"], "name one of them"),
        (["run_id=abc"], "32 hex digits"),
        (["run_id=" + "0" * 32], "no such run"),
        (["run_id=../../etc"], "32 hex digits"),
        (["run_id=" + "0" * 32 + "%0a"], "32 hex digits"),
        (["model=nowhere"], "no such model"),
        (["model=/"], "holds neither model.json nor ensemble.json"),
        (["model=film (1)@{}"], "give a run id, NAME@ALIAS"),
        (["seed=3", "model=/"], "seed=3: unknown key"),
        (["model=/", "band.auroc=-1"], "band.auroc=-1"),
    ],
)
def test_wrong_input(again, arguments, words):
    outcome = again(*arguments)
    assert outcome.code == 2, outcome.err
    assert words in outcome.err
    assert "Traceback" not in outcome.err
