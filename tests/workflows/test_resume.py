"""`xray train resume=ID`: an interrupted run equals an uninterrupted one, difference exactly 0."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from xray_pneumonia.data.datamodule import EpochSampler, XRayDataModule
from xray_pneumonia.training import randomness
from xray_pneumonia.training.classifier import Outputs, PneumoniaClassifier
from xray_pneumonia.training.last_checkpoint import Keeper
from xray_pneumonia.workflows import validation

# Eight batches an epoch, dropout, augmentation: every random state matters.
BUSY = ["model.dropout=0.3", "data.batch_size=8", "augmentation=light", "trainer.max_epochs=3", "trainer.patience=null"]
CLOCKS = ("time/", "system/")


@pytest.fixture
def client(home):
    return MlflowClient(f"sqlite:///{home}/mlflow.db")


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
        asked = ["train", *tiny, *BUSY, *overrides, f"tracking.experiment_name={name}", "resume=new"]
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


# Clocks, the name of the experiment, and the score of the last save, which Lightning neither restores nor reads.
ALLOWED = (".EpochClock.", ".identity.config", ".current_score")


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
            assert state(client, whole[overrides])["xray"]["trained"]
        resumed = interrupted(*overrides, stops=stops, name=name)
        require_equal(client, whole[overrides], resumed)
        return resumed

    return run


STEP, CHECK = (PneumoniaClassifier, "training_step"), (PneumoniaClassifier, "validation_step")
SAVE, JUDGE = (Keeper, "_save"), (validation, "judge_validation")
OFTEN = "trainer.checkpoint_steps=2"


@pytest.mark.parametrize(
    ("place", "count"),
    [(STEP, STEPS), (STEP, STEPS + 3), (CHECK, 3), (JUDGE, 0)],
    ids=["first step of an epoch", "in an epoch", "validation", "after training"],
)
def test_stopped_anywhere_it_equals_one_that_was_not(compare, place, count):
    compare(OFTEN, stops=[(place, count)], name=f"stopped_{place[1]}{count}")


def test_an_epoch_that_was_sent_but_not_saved_is_sent_once(compare, client):
    saves = STEPS // 2  # the next one is that between the epochs, after the metrics of the first were sent
    compare(OFTEN, stops=[(SAVE, saves)], name="sent")


@pytest.mark.slow
def test_ten_interruptions_of_one_run(compare):
    stops = [
        (STEP, 3),
        (STEP, 2),
        (STEP, 4),
        (CHECK, 1),
        (CHECK, 0),
        (STEP, 5),
        (STEP, 3),
        (SAVE, 1),
        (CHECK, 2),
        (JUDGE, 0),
    ]
    compare(OFTEN, stops=stops, name="ten")


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
def test_everything_that_has_a_state_goes_on(compare, overrides):
    stops = [(STEP, 5), (CHECK, 1), (STEP, 7), (JUDGE, 0)]
    compare(OFTEN, *overrides, stops=stops, name="".join(each[-3:] for each in overrides).replace("=", ""))


@pytest.mark.parametrize("forgotten", ["random states", "position", "metrics of the epoch so far"])
def test_the_comparison_can_fail(compare, monkeypatch, forgotten):
    if forgotten == "random states":
        monkeypatch.setattr(randomness, "restore", lambda _: None)
    elif forgotten == "position":
        monkeypatch.setattr(XRayDataModule, "go_on", lambda *_, **__: None)
    else:
        monkeypatch.setattr(Outputs, "take", lambda *_: None)
    with pytest.raises(AssertionError):
        compare(OFTEN, stops=[(STEP, STEPS + 3)], name=f"forgot_{forgotten[:6]}")


@pytest.fixture
def stopped(xray, tiny, client, stop_at):
    """A run that stopped in its second epoch, and the command that began it."""

    def begin(name, *overrides):
        asked = ["train", *tiny, *BUSY, OFTEN, f"tracking.experiment_name={name}", *overrides]
        go = stop_at(STEP, STEPS + 5)
        assert xray(*asked).code == 1
        go()
        [run] = client.search_runs([client.get_experiment_by_name(name).experiment_id])
        return run.info.run_id, asked

    return begin


def test_the_same_command_offers_to_go_on_and_does_nothing_by_itself(xray, client, stopped):
    run_id, asked = stopped("offer")
    outcome = xray(*asked)
    assert outcome.code == 2
    assert f"xray train resume={run_id}" in outcome.err
    assert "after 4 batches of epoch 2" in outcome.err
    experiment = client.get_run(run_id).info.experiment_id
    assert len(client.search_runs([experiment])) == 1
    assert xray(*asked, "seed=1").code == 0  # another config is another training
    assert xray(*asked, "resume=new").code == 0
    assert len(client.search_runs([experiment])) == 3


def test_a_run_that_went_on_tells_the_truth_about_itself(xray, tiny, client, stopped):
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


def test_a_changed_config_is_refused_with_the_difference(xray, tiny, client, stopped):
    run_id, asked = stopped("config")
    for override, line in [
        ("trainer.max_epochs=5", "trainer.max_epochs: 3 in the run, 5 asked for"),
        ("data.batch_size=16", "data.batch_size: 8 in the run, 16 asked for"),
        ("optimizer=sgd", "optimizer.momentum: None in the run, 0.9 asked for"),
        ("experiment=seed_mlp", "data.batch_size: 8 in the run, 80 asked for"),
    ]:
        outcome = xray("train", f"resume={run_id}", tiny[1], override)
        assert outcome.code == 2
        assert line in outcome.err, outcome.err
    assert client.get_run(run_id).info.status == "FAILED"
    assert xray(*asked, f"resume={run_id}").code == 0  # the whole command again, which changes nothing


@pytest.mark.parametrize("change", ["replaced", "removed", "added"])
def test_changed_data_are_refused_with_the_difference(xray, tiny, stopped, xrays, tmp_path, change):
    root = shutil.copytree(xrays, tmp_path / "xrays")
    run_id, _ = stopped(f"data_{change}", f"data.root={root}")
    one, other = sorted((root / "train" / "NORMAL").iterdir())[:2]
    if change == "replaced":
        with Image.open(one) as image:
            Image.fromarray(255 - np.asarray(image)).save(one)
        line = f"train/NORMAL/{one.name}: its content changed"
    elif change == "removed":
        one.unlink()
        line = f"train/NORMAL/{one.name}: is gone"
    else:
        new = one.with_name("IM-7777-0001.jpeg")
        with Image.open(other) as image:
            Image.fromarray(255 - np.asarray(image)).save(new)
        line = f"train/NORMAL/{new.name}: is new"
    outcome = xray("train", f"resume={run_id}", tiny[1])
    assert outcome.code == 2
    assert line in outcome.err, outcome.err


def test_another_length_of_the_schedule_is_refused(xray, tiny, stopped, monkeypatch):
    run_id, _ = stopped("schedule")
    monkeypatch.setattr(EpochSampler, "__len__", lambda _: STEPS + 1)
    outcome = xray("train", f"resume={run_id}", tiny[1])
    assert outcome.code == 2
    assert "schedule: 3 epochs of 9 steps in the run, 3 epochs of 10 steps now" in outcome.err


def test_what_is_no_stopped_training_is_refused(xray, tiny, client, stopped):
    for wrong, word in [("abc", "32 hex digits"), ("0" * 32, "no such run")]:
        outcome = xray("train", f"resume={wrong}", tiny[1])
        assert outcome.code == 2
        assert word in outcome.err
    run_id, _ = stopped("alive")
    client.update_run(run_id, status="RUNNING")
    outcome = xray("train", f"resume={run_id}", tiny[1])
    assert outcome.code == 2
    assert "still running" in outcome.err


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def link(target):
    def replace(path):
        path.unlink()
        path.symlink_to(target)

    return replace


DAMAGE = {
    "truncated": cut,
    "no bytes": lambda path: path.write_bytes(b""),
    "one bit": flip,
    "dangling link": link("nowhere.ckpt"),
    "link to itself": link("last.ckpt"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(
    xray, tiny, client, stopped, compare, whole, damage
):
    compare(OFTEN, stops=[], name="undamaged")
    run_id, _ = stopped(f"damage_{damage.replace(' ', '_')}")
    DAMAGE[damage](folder(client, run_id) / "last.ckpt")
    outcome = xray("train", f"resume={run_id}", tiny[1])
    assert outcome.code == 0, outcome.err
    assert "last.ckpt: damaged" in outcome.err
    assert "going back to last.prev.ckpt" in outcome.err
    require_equal(client, whole[OFTEN,], run_id)


def test_where_no_checkpoint_is_whole_nothing_starts(xray, tiny, client, stopped):
    run_id, _ = stopped("none")
    for name in ("last.ckpt", "last.prev.ckpt"):
        cut(folder(client, run_id) / name)
    before = client.get_run(run_id)
    outcome = xray("train", f"resume={run_id}", tiny[1])
    assert outcome.code == 2
    assert outcome.err.count("damaged") == 2
    assert client.get_run(run_id).to_dictionary() == before.to_dictionary()
