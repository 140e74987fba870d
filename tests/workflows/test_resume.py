"""`xray train resume=ID`: an interrupted run equals an uninterrupted one, difference exactly 0."""

import shutil
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from xray_pneumonia.errors import Stopped
from xray_pneumonia.training import randomness
from xray_pneumonia.training.classifier import PneumoniaClassifier

# Eight batches an epoch, dropout, augmentation: every random state matters.
BUSY = ["model.dropout=0.3", "data.batch_size=8", "augmentation=light", "trainer.max_epochs=3", "trainer.patience=null"]
CLOCKS = ("time/", "system/")


@pytest.fixture
def client(home):
    return MlflowClient(f"sqlite:///{home}/mlflow.db")


@pytest.fixture
def stop_at(monkeypatch):
    """Stop the next training before its n-th step, counted in this process, as a crash would: at once."""

    def set_up(step, error=RuntimeError("power cut"), stage="training_step"):
        plain = getattr(PneumoniaClassifier, stage)
        seen = []

        def stopping(self, batch, index):
            seen.append(index)
            if len(seen) > step:
                raise error
            return plain(self, batch, index)

        monkeypatch.setattr(PneumoniaClassifier, stage, stopping)
        return lambda: monkeypatch.setattr(PneumoniaClassifier, stage, plain)

    return set_up


@pytest.fixture
def interrupted(xray, tiny, client, stop_at):
    """Train with a stop before each of these steps; gives the run, resumed to its end."""

    def train(*overrides, stops, name):
        asked = ["train", *tiny, *BUSY, *overrides, f"tracking.experiment_name={name}", "resume=new"]
        for number, step in enumerate(stops):
            go = stop_at(step)
            outcome = xray(*asked)
            go()
            assert outcome.code == 1, outcome.err
            if number == 0:
                [run] = client.search_runs([client.get_experiment_by_name(name).experiment_id], max_results=1)
                asked = ["train", f"resume={run.info.run_id}", tiny[1]]
        outcome = xray(*asked)
        assert outcome.code == 0, outcome.err
        return outcome.run_id

    return train


def folder(client, run_id):
    return Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://")) / "checkpoints"


def state(client, run_id, name="last.ckpt"):
    return torch.load(folder(client, run_id) / name, weights_only=True)


def metrics(client, run_id):
    keys = client.get_run(run_id).data.metrics
    return {
        key: [(entry.step, entry.value) for entry in client.get_metric_history(run_id, key)]
        for key in keys
        if not key.startswith(CLOCKS)
    }


def differences(one, two, path=""):
    """Every leaf in which two checkpoints differ, at tolerance 0."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, two) else [path]
    if isinstance(one, dict):
        assert set(one) == set(two), path
        return [each for key in one for each in differences(one[key], two[key], f"{path}.{key}")]
    if isinstance(one, list | tuple):
        assert len(one) == len(two), path
        return [each for k, pair in enumerate(zip(one, two, strict=True)) for each in differences(*pair, f"{path}.{k}")]
    return [] if one == two else [path]


ALLOWED = ("EpochClock", ".dirpath", "_path", ".best_k_models", ".identity", "_batches_that_stepped")


def require_equal(client, one, two):
    for name in ("last.ckpt", "best.ckpt"):
        found = differences(state(client, one, name), state(client, two, name))
        assert not [path for path in found if not any(word in path for word in ALLOWED)], found
    first, second = metrics(client, one), metrics(client, two)
    assert first == second
    assert [step for step, _ in second["train/loss"]] == [1, 2, 3]


STEPS = 9  # of an epoch


@pytest.fixture(scope="module")
def whole():
    """Uninterrupted runs, by their overrides: trained once."""
    return {}


@pytest.fixture
def compare(interrupted, client, whole):
    def run(*overrides, stops, name):
        if overrides not in whole:
            whole[overrides] = interrupted(*overrides, stops=[], name=f"{name}_whole")
            assert state(client, whole[overrides])["global_step"] == 3 * STEPS
        resumed = interrupted(*overrides, stops=stops, name=name)
        require_equal(client, whole[overrides], resumed)
        return resumed

    return run


@pytest.mark.parametrize("stop", [STEPS, STEPS + 3, 2 * STEPS - 1])
def test_stopped_in_the_middle_of_an_epoch_it_equals_one_that_was_not(compare, stop):
    compare("trainer.checkpoint_steps=2", stops=[stop], name=f"stopped{stop}")
