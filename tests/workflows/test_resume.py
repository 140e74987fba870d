"""`xray train resume=ID`: an interrupted run equals an uninterrupted one, difference exactly 0."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient
from PIL import Image

from xray_pneumonia.data.datamodule import EpochSampler
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.report import figures
from xray_pneumonia.training import last_checkpoint
from xray_pneumonia.training.classifier import PneumoniaClassifier
from xray_pneumonia.training.last_checkpoint import LastCheckpoint
from xray_pneumonia.workflows import training, training_run

# Nine batches an epoch, dropout, augmentation: every random state matters.
BUSY = ["model.dropout=0.3", "data.batch_size=8", "augmentation=light", "trainer.max_epochs=3", "trainer.patience=null"]
STEPS = 9  # of an epoch
CLOCKS = ("time/", "system/")
STEP, CHECK = (PneumoniaClassifier, "training_step"), (PneumoniaClassifier, "validation_step")
SAVE, EVALUATE = (LastCheckpoint, "_save"), (training, "_evaluate")


@pytest.fixture
def client(home):
    return MlflowClient(f"sqlite:///{home}/mlflow.db")


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Leave out figures and the MLflow model: a quarter of a tiny run's time, and no part of the question."""
    for name in ("learning_curves", "confusion_matrix", "roc_and_precision_recall", "worst_mistakes"):
        monkeypatch.setattr(figures, name, lambda *_, **__: Figure())
    monkeypatch.setattr(training_run, "record_bundle", lambda *_, **__: None)


@pytest.fixture
def stop_at(monkeypatch):
    """Stop the next training at the n-th call of a function, counted in this process, as a crash would: at once."""

    def set_up(place, count):
        owner, name = place
        plain = getattr(owner, name)
        seen = []

        def stopping(*arguments, **named):
            seen.append(name)
            if len(seen) > count:
                raise RuntimeError("power cut")
            return plain(*arguments, **named)

        monkeypatch.setattr(owner, name, stopping)
        return lambda: monkeypatch.setattr(owner, name, plain)

    return set_up


@pytest.fixture
def interrupted(xray, tiny, client, stop_at):
    """Train with a stop at each of these places; gives the run, resumed to its end."""

    def run(*overrides, stops, name):
        asked = ["train", *tiny, *BUSY, *overrides, f"tracking.experiment_name={name}"]
        for number, (place, count) in enumerate(stops):
            go = stop_at(place, count)
            outcome = xray(*asked)
            go()
            assert outcome.code == 1, outcome.err
            if number == 0:
                [run] = client.search_runs([client.get_experiment_by_name(name).experiment_id], max_results=1)
                asked = ["train", f"resume={run.info.run_id}", tiny[1]]
        outcome = xray(*asked)
        assert outcome.code == 0, outcome.err
        return outcome.run_id

    return run


def folder(client, run_id):
    return Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://")) / "checkpoints"


def state(client, run_id, name="last.ckpt"):
    place = str(folder(client, run_id))
    return placeless(torch.load(folder(client, run_id) / name, weights_only=True), place)


def placeless(value, place):
    """Leave out where a run lies, which two runs cannot share."""
    if isinstance(value, dict):
        return {placeless(key, place): placeless(each, place) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [placeless(each, place) for each in value]
    return value.replace(place, "") if isinstance(value, str) else value


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
        return [] if isinstance(two, torch.Tensor) and torch.equal(one, two) else [path]
    if isinstance(one, dict):
        assert set(one) == set(two), path
        return [each for key in one for each in differences(one[key], two[key], f"{path}.{key}")]
    if isinstance(one, list | tuple):
        assert len(one) == len(two), path
        return [each for k, pair in enumerate(zip(one, two, strict=True)) for each in differences(*pair, f"{path}.{k}")]
    return [] if one == two else [path]


# The name of the experiment, and the score of the last save, which Lightning neither restores nor reads.
ALLOWED = (".identity.config", ".current_score")


def require_equal(client, one, two):
    for name in ("last.ckpt", "best.ckpt"):
        found = differences(state(client, one, name), state(client, two, name))
        assert not [path for path in found if not any(word in path for word in ALLOWED)], found
    first, second = metrics(client, one), metrics(client, two)
    assert first == second
    assert [step for step, _ in second["train/loss"]] == [1, 2, 3]


@pytest.fixture(scope="module")
def whole():
    """Uninterrupted runs, by their overrides: trained once."""
    return {}


@pytest.fixture
def compare(interrupted, client, whole):
    def run(*overrides, stops, name):
        if overrides not in whole:
            whole[overrides] = interrupted(*overrides, stops=[], name=f"{name}_whole")
            assert state(client, whole[overrides])["xray"]["trained"]
        resumed = interrupted(*overrides, stops=stops, name=name)
        require_equal(client, whole[overrides], resumed)
        return resumed

    return run


def test_one_that_was_stopped_anywhere_equals_one_that_was_not(compare):
    """Within an epoch, before its first step, in validation, where it was sent but not saved, after training."""
    in_epoch_2 = [(STEP, STEPS), (STEP, 3), (CHECK, 1), (CHECK, 0), (SAVE, 0)]
    in_epoch_3 = [(STEP, STEPS), (STEP, 3), (CHECK, 1), (SAVE, 0), (EVALUATE, 0)]
    compare(stops=in_epoch_2 + in_epoch_3, name="ten")


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.ema_decay=0.9", "scheduler=plateau", "scheduler.patience=0", "monitor=val/loss"],
        ["trainer.accumulate_batches=2", "scheduler=onecycle", "optimizer=sgd"],
        ["trainer.patience=1", "optimizer.lr=1e-6", "scheduler=constant", "data.num_workers=1"],
    ],
    ids=["averages and plateau", "accumulation", "early stopping and workers"],
)
def test_everything_that_has_a_state_is_resumed(compare, overrides):
    stops = [(STEP, STEPS + 5), (STEP, STEPS + 7)]  # in the second epoch, in the third
    compare(*overrides, stops=stops, name="".join(each[-3:] for each in overrides).replace("=", ""))


@pytest.mark.parametrize("left_out", ["random states", "epoch of the data", "schedule"])
def test_the_comparison_can_fail(compare, monkeypatch, left_out):
    if left_out == "random states":
        monkeypatch.setattr(last_checkpoint, "restore_random_states", lambda _: None)
    elif left_out == "epoch of the data":
        monkeypatch.setattr(EpochSampler, "set_epoch", lambda *_: None)
    else:
        monkeypatch.setattr(torch.optim.lr_scheduler.LambdaLR, "load_state_dict", lambda *_: None)
    with pytest.raises(AssertionError):
        compare(stops=[(STEP, STEPS + 3)], name=f"left_out_{left_out[:5]}")


@pytest.fixture
def stopped(xray, tiny, client, stop_at):
    """A run that stopped in its second epoch, and the command that began it."""

    def begin(name, *overrides):
        asked = ["train", *tiny, *BUSY, f"tracking.experiment_name={name}", *overrides]
        go = stop_at(STEP, STEPS + 5)
        assert xray(*asked).code == 1
        go()
        [run] = client.search_runs([client.get_experiment_by_name(name).experiment_id])
        return run.info.run_id, asked

    return begin


def test_the_same_command_trains_anew_and_mentions_the_stopped_run_once(xray, client, stopped, monkeypatch):
    run_id, asked = stopped("mention")
    line = f"run {run_id} of the same config stopped after epoch 1: `xray train resume={run_id}` resumes it"
    monkeypatch.setattr(training, "run_training", lambda *_, **__: (_ for _ in ()).throw(InputError("enough")))

    def said(*overrides):
        outcome = xray(*asked, *overrides)
        return [each for each in outcome.err.splitlines() if "xray: training anew" in each]

    assert [line in each for each in said()] == [True]
    assert said("resume=new") == said("seed=1") == []  # another config is another training
    monkeypatch.undo()
    outcome = xray(*asked)
    assert outcome.code == 0
    assert outcome.run_id != run_id
    assert said() == []  # the latest run of this config is finished


def test_a_resumed_run_is_recorded_as_such(xray, tiny, client, stopped):
    run_id, _ = stopped("truth")
    assert client.get_run(run_id).info.status == "FAILED"
    outcome = xray("train", f"resume={run_id}", tiny[1])
    assert outcome.run_id == run_id
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["resumed"] == "1"
    assert "reason" not in run.data.tags
    assert sorted(path.name for path in folder(client, run_id).iterdir()) == [
        "best.ckpt",
        "best.ckpt.sha256",
        "last.ckpt",
        "last.ckpt.sha256",
    ]
    again = xray("train", f"resume={run_id}", tiny[1])
    assert again.code == 2
    assert "finished" in again.err
    assert f"xray evaluate run_id={run_id}" in again.err


def test_what_has_changed_is_refused_with_the_difference(xray, tiny, client, stopped, xrays, tmp_path, monkeypatch):
    """Config, files and schedule, asked of one run; then the whole command again, which changes nothing."""
    root = shutil.copytree(xrays, tmp_path / "xrays")
    run_id, asked = stopped("changed", f"data.root={root}")

    def require_refused(line, *overrides):
        outcome = xray("train", f"resume={run_id}", tiny[1], *overrides)
        assert outcome.code == 2
        assert line in outcome.err, outcome.err

    require_refused("trainer.max_epochs: 3 in the run, 5 asked for", "trainer.max_epochs=5")
    require_refused("data.batch_size: 8 in the run, 16 asked for", "data.batch_size=16")
    require_refused("optimizer.momentum: None in the run, 0.9 asked for", "optimizer=sgd")
    require_refused("data.batch_size: 8 in the run, 80 asked for", "experiment=notebook_mlp")
    one, other = sorted((root / "train" / "NORMAL").iterdir())[:2]
    before = one.read_bytes()
    with Image.open(one) as image:
        Image.fromarray(255 - np.asarray(image)).save(one)
    require_refused(f"train/NORMAL/{one.name}: its content changed")
    one.unlink()
    require_refused(f"train/NORMAL/{one.name}: is gone")
    one.write_bytes(before)
    new = one.with_name("IM-7777-0001.jpeg")
    with Image.open(other) as image:
        Image.fromarray(255 - np.asarray(image)).save(new)
    require_refused(f"train/NORMAL/{new.name}: is new")
    new.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(EpochSampler, "__len__", lambda _: STEPS + 1)
        require_refused("schedule: 3 epochs of 9 steps in the run, 3 epochs of 10 steps now")
    assert client.get_run(run_id).info.status == "FAILED"
    assert xray(*asked, f"resume={run_id}").code == 0


def test_what_is_no_stopped_training_is_refused(xray, tiny, client, stopped):
    run_id, _ = stopped("refused")

    def refused(what=run_id):
        outcome = xray("train", f"resume={what}", tiny[1])
        assert outcome.code == 2
        return outcome.err

    assert "32 hex digits" in refused("abc")
    assert "no such run" in refused("0" * 32)
    client.update_run(run_id, status="RUNNING")
    assert "still running" in refused()
    client.update_run(run_id, status="FAILED")
    before = client.get_run(run_id).to_dictionary()
    (folder(client, run_id) / "last.prev.ckpt").write_bytes(b"")
    os.truncate(folder(client, run_id) / "last.ckpt", 1000)
    assert refused().count(": damaged:") == 2
    for path in folder(client, run_id).iterdir():
        path.unlink()
    assert "stopped before the end of its first epoch" in refused()
    assert client.get_run(run_id).to_dictionary() == before


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(xray, tiny, client, stop_at, compare, whole):
    compare(stops=[], name="undamaged")
    go = stop_at(STEP, 2 * STEPS + 5)
    assert xray("train", *tiny, *BUSY, "tracking.experiment_name=damaged").code == 1
    go()
    [run] = client.search_runs([client.get_experiment_by_name("damaged").experiment_id])
    os.truncate(folder(client, run.info.run_id) / "last.ckpt", 1000)
    outcome = xray("train", f"resume={run.info.run_id}", tiny[1])
    assert outcome.code == 0, outcome.err
    assert "last.ckpt: damaged" in outcome.err
    assert "going back to last.prev.ckpt, after epoch 1" in outcome.err
    require_equal(client, whole[()], run.info.run_id)
