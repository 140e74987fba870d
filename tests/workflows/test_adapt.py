"""`model.init_from`, and `xray adapt`, end to end, on generated X-rays."""

import pandas as pd
import pytest
from safetensors.torch import load_file

from xray_pneumonia.data.local_sample import scan_local
from xray_pneumonia.errors import InputError
from xray_pneumonia.inference.bundle import WEIGHTS, read_bundle
from xray_pneumonia.stored_config import check_net
from xray_pneumonia.tracking.store import TrackingSettings, open_database
from xray_pneumonia.tracking.stored_runs import read_run
from xray_pneumonia.whole_files import file_sha256

NET = ["model=cnn", "model.filters=[4]", "model.activations=[relu]", "model.dense=4", "data.image_size=32"]


@pytest.fixture
def tiny(tiny):
    return [one for one in tiny if not one.startswith(("model", "data.image"))]


@pytest.fixture
def stored(home):
    """Read a run."""
    return lambda run_id: read_run(open_database(_settings(), home=home), run_id)


def _settings():
    return TrackingSettings(uri=None, experiment_name="xray", run_name=None, system_metrics=False, required=False)


def test_a_training_starts_from_weights_and_keeps_what_is_frozen(xray, tiny, bundle, stored):
    parent = bundle.folder / WEIGHTS
    own = ["trainer.max_epochs=1", "trainer.freeze=[blocks]", "trainer.backbone_lr=0.5"]
    outcome = xray("train", *tiny, *NET, *own, f"model.init_from={parent}")
    assert outcome.code == 0, outcome.err
    run, before = stored(outcome.run_id), load_file(parent)
    after = load_file(run.bundle() / WEIGHTS)
    changed = {name.split(".")[0] for name in before if not before[name].equal(after[name])}
    assert changed == {"head"}
    assert (run.tags["init.from"], run.tags["init.sha256"]) == (str(parent), file_sha256(parent))


@pytest.mark.parametrize(
    ("asked", "why"),
    [("final_ensemble", "no single net"), ("final", "do not fit this net"), ("nowhere.safetensors", "cannot be read")],
)
def test_weights_that_do_not_fit_are_refused(xray, tiny, asked, why):
    outcome = xray("train", *tiny, *NET, f"model.init_from={asked}")
    assert outcome.code == 2
    assert f"model.init_from={asked}" in outcome.err
    assert why in outcome.err


def adapted(xray, home, root, *more):
    own = ["precision=0.3", "data.folds=3", "evaluation=quick", f"home={home}", f"data.root={root}"]
    return xray("adapt", *own, *more)


@pytest.mark.parametrize("method", ["auto", "threshold"])
def test_adapt_leaves_a_model_that_predicts_and_says_where_it_comes_from(
    xray, home, xrays, bundle, stored, tmp_path, method
):
    outcome = adapted(xray, home, xrays, f"model={bundle.folder}", f"method={method}")
    assert outcome.code == 0, outcome.err
    run = stored(outcome.run_id)
    card, weights = read_bundle(run.bundle())
    films = pd.read_csv(run.artifact("predictions/val.csv"))
    assert card.lineage["parent_weights_sha256"] == file_sha256(bundle.folder / WEIGHTS)
    assert (card.lineage["images"], card.evidence["val/images"]) == (str(len(films)), len(films))
    assert not films["id"].str.startswith("test/").any()  # nothing is fitted to a test
    assert "adaptation.html" in outcome.out
    same = weights.keys() == load_file(bundle.folder / WEIGHTS).keys()
    assert same == (card.lineage["method"] == "threshold")
    answers = xray("predict", f"model={outcome.run_id}", f"input={xrays}/train", f"home={home}", f"output={tmp_path}/o")
    assert answers.code == 0, answers.err
    assert pd.read_csv(tmp_path / "o" / "predictions.csv")["probability"].between(0, 1).all()
    for verb in (["evaluate", "split=val"], ["reproduce"]):  # there is no validation split, and no training
        refused = xray(*verb, f"run_id={outcome.run_id}", f"home={home}")
        assert refused.code == 2
        assert "was adapted" in refused.err


def test_all_weights_are_finetuned_by_the_recipe_for_many_films(xray, home, xrays, bundle, stored):
    more = ["method=finetune", "recipe=all", "trainer=cpu", "trainer.max_epochs=1", "trainer.keep_freed_memory=false"]
    outcome = adapted(xray, home, xrays, f"model={bundle.folder}", *more)
    assert outcome.code == 0, outcome.err
    card, weights = read_bundle(stored(outcome.run_id).bundle())
    assert card.lineage["method"] == "finetune, recipe all"
    assert not any(value.equal(weights[name]) for name, value in load_file(bundle.folder / WEIGHTS).items())


def test_too_small_a_sample_is_refused_with_the_number_that_is_needed(xray, home, xrays, bundle):
    outcome = adapted(xray, home, xrays, f"model={bundle.folder}", "precision=0.1")
    assert outcome.code == 2
    assert "93 of each are needed" in outcome.err


def test_films_must_be_named(xray, home, bundle):
    outcome = xray("adapt", f"model={bundle.folder}", f"home={home}")
    assert outcome.code == 2
    assert "data.root=None" in outcome.err


def test_films_get_their_labels_from_readers_by_their_hash(xrays, tmp_path, caplog):
    films = sorted(xrays.rglob("*.jpeg"))[:4]
    rows = [(file_sha256(film), "NORMAL", "agree") for film in films]
    rows += [(rows[0][0], "PNEUMONIA", "disagree"), (rows[1][0], "", "unsure"), ("f" * 64, "NORMAL", "agree")]
    pd.DataFrame(rows, columns=["sha256", "label", "opinion"]).to_csv(tmp_path / "labels.csv", index=False)
    found = scan_local(xrays, labels=str(tmp_path / "labels.csv"))
    assert dict(zip(found["id"], found["label"], strict=True)) == {
        str(film.relative_to(xrays)): int(film == films[0]) for film in films
    }
    assert "1 films were given several labels" in caplog.text
    assert "1 of its 5 films are not below" in caplog.text


def test_a_net_around_what_is_none_is_refused():
    node = {"_target_": "xray_pneumonia.models.probe.Probe", "features": 4, "image_size": 32}
    inner = {"_target_": "xray_pneumonia.data.images.sandbox.Limits", "seconds": 1.0, "memory_mb": 9}
    with pytest.raises(InputError, match="net names no net"):
        check_net(node | {"net": inner}, origin="model.json")
