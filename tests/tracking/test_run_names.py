"""Runs get names of their own, and are found by name, alias, `last`, `best` and the first digits of their id."""

import dataclasses
import random

import pytest

from xray_pneumonia.errors import InputError
from xray_pneumonia.tracking import run_names
from xray_pneumonia.tracking.run import start_run
from xray_pneumonia.tracking.run_names import find_run_id, free_name, last_touched
from xray_pneumonia.tracking.store import TrackingSettings, open_store


@pytest.fixture(scope="module")
def store(home):
    settings = TrackingSettings(uri=None, experiment_name="names", run_name=None, system_metrics=False, required=False)
    return open_store(settings, home=home)


@pytest.fixture(scope="module")
def ids(store):
    """Write four trainings: two of one name, and a pruned one whose value is the best."""
    ids = []
    for name, auroc, tags in (
        ("resnet-strong-s0", 0.9, {}),
        ("twin", 0.8, {}),
        ("twin", 0.7, {}),
        ("it's 3", 0.99, {"sweep.state": "PRUNED", "state": "pruned"}),
    ):
        with start_run(store, name=name, tags={"verb": "train", **tags}, system_metrics=False) as run:
            run.set_tags(tags)
            run.log_metrics({"best/auroc": auroc})
        ids.append(run.run_id)
    model = store.client.create_registered_model("names-nets")
    version = store.client.create_model_version(model.name, f"runs:/{ids[1]}/model", run_id=ids[1])
    store.client.set_registered_model_alias(model.name, "first-choice", version.version)
    return ids


def test_a_run_is_found_by_all_that_names_it(store, ids):
    named = {
        ids[0]: 0, ids[0][:8]: 0, ids[2][:12]: 2, "resnet-strong-s0": 0, "it's 3": 3, "first-choice": 1,
        "names-nets@first-choice": 1, "best": 0, "last": 3,
    }  # fmt: skip
    assert {text: ids.index(find_run_id(store, text)) for text in named} == named
    assert [run.run_id for run in last_touched(store)] == ids[3:]
    other = dataclasses.replace(store, experiment_name="elsewhere")  # names are found in other experiments too
    assert find_run_id(other, "resnet-strong-s0") == ids[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("twin", r"run_id=twin: names 2 runs in .*: \w{8} \(twin, 20.*\), \w{8} \(twin, 20.*\); give eight digits"),
        ("nobody", "run_id=nobody: there is no such run in .*xray runs"),
        ("00000000", "no such run"),
        ("a'b\"c", "no such run"),
        ("names-nets@champion", "no such run"),
    ],
)
def test_what_names_none_or_several_is_refused(store, ids, text, message):
    with pytest.raises(InputError, match=message):
        find_run_id(store, text)


def test_a_name_that_is_taken_gets_a_suffix_that_no_seed_decides(store, ids):
    random.seed(0)
    one = free_name(store, "resnet-strong-s0")
    random.seed(0)
    other = free_name(store, "resnet-strong-s0")
    assert free_name(store, "resnet-strong-s1") == "resnet-strong-s1"
    assert one != other
    assert one.startswith("resnet-strong-s0-")
    assert free_name(dataclasses.replace(store, experiment_id=""), "resnet-strong-s0") == "resnet-strong-s0"


def test_of_a_sweep_its_trainings_are_shown_or_its_parent_where_they_are_many(store, monkeypatch):
    with start_run(store, name="many", tags={"verb": "sweep", "sweep.name": "many"}, system_metrics=False) as parent:
        pass
    trainings = []
    for number in range(3):
        tags = {"verb": "train", "sweep.name": "many"}
        with start_run(store, name=f"many {number}", tags=tags, system_metrics=False) as run:
            trainings.append(run.run_id)
    assert {run.run_id for run in last_touched(store)} == set(trainings)
    monkeypatch.setattr(run_names, "MOST_COMPARED", 2)
    assert [run.run_id for run in last_touched(store)] == [parent.run_id]
