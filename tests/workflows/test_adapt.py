"""`model.init_from`, and `xray adapt`, end to end, on generated X-rays."""

import pytest
from safetensors.torch import load_file

from xray_pneumonia.inference.bundle import WEIGHTS, file_sha256
from xray_pneumonia.tracking.store import TrackingSettings, open_database
from xray_pneumonia.tracking.stored_runs import read_run

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
