"""`xray train`, end to end, on generated X-rays."""

import contextlib
import hashlib
import json
import re
import shutil
import signal
from pathlib import Path
from unittest import mock

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from mlflow import MlflowClient

from xray_pneumonia import errors
from xray_pneumonia.data.images.decode import decode, read_bytes
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.metrics import epoch_metrics
from xray_pneumonia.models.layers import require_last_batch
from xray_pneumonia.tracking import server
from xray_pneumonia.tracking.registry import tracking_uri
from xray_pneumonia.tracking.sync import Sender
from xray_pneumonia.training.classifier import PneumoniaClassifier
from xray_pneumonia.workflows import ui

PER_EPOCH = [
    *(f"{stage}/{name}" for stage in ("train", "val") for name in ("loss", "accuracy")),
    *(f"val/{n}" for n in ("auroc", "average_precision", "sensitivity", "specificity", "balanced_accuracy")),
    "time/epoch_seconds",
    "time/images_per_second",
    "optimizer/lr",
]


@pytest.fixture
def client(home):
    return MlflowClient(f"sqlite:///{home}/mlflow.db")


@pytest.fixture
def folder(client):
    def find(run_id):
        return Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))

    return find


@pytest.fixture(scope="module")
def outcomes():
    return {}


@pytest.fixture
def trained(xray, tiny, outcomes, drawn):
    """One training with its report, for all tests that only look at it."""
    if not outcomes:
        outcomes["trained"] = xray("train", *tiny, "evaluation=training")
    assert outcomes["trained"].code == 0, outcomes["trained"].err
    return outcomes["trained"]


def test_a_run_holds_all_it_should(trained, client, folder, xrays):
    outcome = trained
    last = outcome.out.splitlines()[-1]
    assert last.startswith(f"run_id={outcome.run_id} val/auroc=0.") or last.endswith("val/auroc=1.000000")
    run = client.get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    home = folder(outcome.run_id)
    config = (home / "config.yaml").read_bytes()
    assert hashlib.sha256(config).hexdigest() == run.data.tags["config_sha256"]
    assert yaml.safe_load(config)["data"]["root"] == str(xrays)
    assert run.data.params["optimizer.lr"] == "0.001"
    for name in PER_EPOCH:
        assert [metric.step for metric in client.get_metric_history(outcome.run_id, name)] == [1, 2], name
    assert int(run.data.params["model/parameters"]) > 0
    assert not [name for name in run.data.metrics if name.startswith(("model/", "data/")) or name.endswith("_low")]
    for file in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "predictions/val.csv", "environment.json"):
        assert (home / file).stat().st_size > 0
    for name in ("learning_curves", "confusion_matrix", "roc_and_precision_recall", "worst_mistakes"):
        assert (home / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
    records = pd.read_csv(home / "records.csv")
    assert set(records["split"].dropna()) >= {"train", "val"}
    assert records["sha256"].str.len().eq(64).all()
    assert len(run.data.tags["records_fingerprint"]) == 64
    assert run.inputs.dataset_inputs[0].dataset.digest == run.data.tags["records_fingerprint"][:36]
    assert json.loads((home / "environment.json").read_text())["versions"]["torch"] == torch.__version__


def test_the_printed_figure_is_that_of_the_stored_predictions_and_says_what_it_rests_on(trained, folder):
    outcome = trained
    table = pd.read_csv(folder(outcome.run_id) / "predictions/val.csv")
    found = epoch_metrics(table["logit"].to_numpy(), table["label"].to_numpy())
    assert f"val/auroc={found['auroc']:.6f}" in outcome.out
    assert f"{len(table)} images of {table['patient'].nunique()} patients" in outcome.out
    assert max(map(len, outcome.out.splitlines()[:8])) <= 80


def test_a_run_says_what_it_is(trained, client, folder, xray, tiny, monkeypatch):
    run = client.get_run(trained.run_id)
    assert run.info.run_name.startswith("resnet-none-s0")  # with a suffix where another test of this home has it
    assert run.data.tags["state"] == "complete"
    assert {"mlflow.user", "mlflow.source.name", "mlflow.source.type"} <= set(run.data.tags)
    result, new, report = run.data.tags["mlflow.note.content"].splitlines()
    at = run.data.metrics["operating/sensitivity"], run.data.metrics["best/sensitivity"]
    assert f"sensitivity {at[0]:.4f} ({at[1]:.4f})" in result
    assert new.startswith("New: `model=resnet model.width=4")
    assert "home=" not in new
    assert f"/runs/{trained.run_id}/artifacts/evaluation/val/report.html?" in report
    page = folder(trained.run_id) / "evaluation/val/report.html"
    assert f"Report: {page}\nSee it: xray ui home=" in trained.out
    assert page.is_file()
    assert not {"operating/auroc", "operating/average_precision"} & set(run.data.metrics)

    dataset = run.inputs.dataset_inputs[0].dataset
    assert json.loads(dataset.profile)["train PNEUMONIA"] > 0
    assert {"name": "label", "type": "long", "required": True} in json.loads(dataset.schema)["mlflow_colspec"]
    model = client.get_logged_model(run.data.tags["model_id"])
    assert model.name == f"{run.info.run_name}-epoch-{run.data.metrics['best/epoch']:.0f}"
    assert model.params["augmentation"] == "none"
    [linked] = [metric for metric in model.metrics if metric.key == "operating/specificity"]
    assert (linked.value, linked.dataset_digest) == (run.data.metrics["operating/specificity"], dataset.digest)
    assert len(client.get_metric_history(trained.run_id, "operating/specificity")) == 1

    listed = xray("runs", tiny[1])
    assert listed.code == 0, listed.err
    assert re.search(rf"{run.info.run_name} +│ {trained.run_id[:8]} │ train .*complete", listed.out)
    monkeypatch.setattr(ui, "serve", lambda store, port: contextlib.nullcontext(("http://here", mock.Mock())))
    shown = xray("ui", tiny[1], f"run_ids=[{run.info.run_name}]")
    page = f"http://here/#/experiments/{run.info.experiment_id}/runs/{trained.run_id}?{server.SHOWN}"
    assert shown.out.splitlines()[-1] == f"See it: {page}"


def test_the_logged_model_answers_as_the_run_did(trained, client, folder, home, xrays):
    outcome = trained
    run = client.get_run(outcome.run_id)
    with tracking_uri(f"sqlite:///{home}/mlflow.db"):
        model = mlflow.pyfunc.load_model(f"models:/{run.data.tags['model_id']}")
    table = pd.read_csv(folder(outcome.run_id) / "predictions/val.csv").head(5)
    images = [decode(read_bytes(xrays / name), 32).pixels.tolist() for name in table["id"]]
    answers = model.predict(pd.DataFrame({"pixels": images}))
    np.testing.assert_allclose(answers["probability"], table["probability"], atol=1e-5)
    assert client.get_logged_model(run.data.tags["model_id"]).experiment_id == run.info.experiment_id
    assert not [path for path in folder(outcome.run_id).rglob("*.pkl")]


def weights(folder, run_id, which="last"):
    return torch.load(folder(run_id) / f"checkpoints/{which}.ckpt", weights_only=True)["state_dict"]


def test_the_last_epoch_is_the_model_where_that_is_asked_for(xray, tiny, client, folder):
    asked = [*tiny, "trainer.max_epochs=3", "optimizer.lr=0.3"]  # the best is not the last
    one, other = (xray("train", *asked, f"trainer.keep={keep}") for keep in ("best", "last"))
    kept = [client.get_run(run.run_id).data.metrics["best/epoch"] for run in (one, other)]
    assert kept[0] < kept[1] == 3
    assert f"Best of 3 epochs: {kept[0]:.0f}, chosen on these same images" in one.out
    assert "The last of 3 epochs: where it stops was chosen on these images." in other.out
    patient = xray("train", *asked, "trainer.keep=last", "trainer.patience=null")
    assert "The last of 3 epochs: none was chosen on these images." in patient.out
    last, best = (weights(folder, other.run_id, which) for which in ("last", "best"))
    assert all(torch.equal(last[name], best[name]) for name in last)


def test_same_config_and_seed_same_bits(xray, tiny, client, folder):
    asked = [*tiny, "augmentation=light", "model.dropout=0.3", "seed=0"]
    one, two = (xray("train", *asked).run_id for _ in range(2))
    other = xray("train", *asked[:-1], "seed=1").run_id
    a, b, c = (weights(folder, run_id) for run_id in (one, two, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)
    for name in PER_EPOCH[:-3]:
        assert [m.value for m in client.get_metric_history(one, name)] == [
            m.value for m in client.get_metric_history(two, name)
        ]


def test_the_seeds_class_weights_and_experiments_reach_the_run(xray, tiny, client):
    small = [o for o in tiny if not o.startswith("model")]
    outcome = xray(
        "train",
        "experiment=notebook_final",
        *small,
        "model.filters=[2,2]",
        "model.activations=[relu,tanh]",
        "model.dense=4",
    )
    assert outcome.code == 0, outcome.err
    params = client.get_run(outcome.run_id).data.params
    assert params["loss.class_weights.NORMAL"] == "3"
    choices = {"model": "cnn", "augmentation": "none", "optimizer": "rmsprop", "loss": "bce", "scheduler": "constant"}
    assert {key: params[key] for key in choices} == choices
    assert not [key for key in params if key.endswith("_target_")]
    assert params["augmentation.rotate"] == "0"


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss=focal", "optimizer=sgd", "scheduler=onecycle"],
        ["trainer.ema_decay=0.9", "scheduler=plateau", "loss.class_weights={NORMAL: 2, PNEUMONIA: 1}"],
        ["optimizer=rmsprop", "scheduler=constant", "trainer.gradient_clip=1", "trainer.accumulate_batches=2"],
        ["data.folds=3", "data.fold=1", "loss.label_smoothing=0.1", "trainer.patience=1", "data.progressive=[16,32]"],
        # a fused optimiser with clipped gradients in mixed precision; keys of stored configs that have no effect
        ["trainer.precision=bf16-mixed", "trainer.gradient_clip=0.5", "trainer.checkpoint_steps=2"],
    ],
)
def test_every_choice_trains(xray, tiny, overrides):
    outcome = xray("train", *tiny, *overrides)
    assert outcome.code == 0, outcome.err
    ignored = "trainer.checkpoint_minutes=10 trainer.checkpoint_steps=2: without effect"
    assert outcome.err.count(ignored) == ("trainer.checkpoint_steps=2" in overrides)


def test_averaged_weights_are_the_ones_that_are_kept(xray, tiny, client):
    outcome = xray("train", *tiny, "trainer.ema_decay=0.9", "monitor=val/loss", "optimizer.lr=0.01")
    assert outcome.code == 0, outcome.err
    table = pd.read_csv(client.download_artifacts(outcome.run_id, "predictions/val.csv"))
    loss = float(np.logaddexp(0, np.where(table["label"] == 1, -1, 1) * table["logit"]).mean())
    validated = min(m.value for m in client.get_metric_history(outcome.run_id, "val/loss"))
    assert loss == pytest.approx(validated, rel=1e-4)
    assert client.get_run(outcome.run_id).data.params["mode"] == "min"


def test_a_loss_that_is_no_number_fails_the_run(xray, tiny, client):
    wild = ["optimizer=sgd", "optimizer.lr=1e6", "scheduler=constant", "tracking.experiment_name=diverge"]
    outcome = xray("train", *tiny, *wild)
    assert outcome.code == 1
    assert "lower optimizer.lr" in outcome.err
    run = client.search_runs([client.get_experiment_by_name("diverge").experiment_id])[0]
    assert run.info.status == "FAILED"
    assert "TrainingDiverged" in run.data.tags["reason"]


def test_refused_data_leave_no_run(xray, tiny, xrays, tmp_path):
    root = shutil.copytree(xrays, tmp_path / "xrays")
    (root / "train/NORMAL/IM-9000-0001.jpeg").write_bytes(b"")
    others = [override for override in tiny if not override.startswith(("data.root", "home"))]
    outcome = xray("train", *others, f"data.root={root}", f"home={tmp_path / 'h'}")
    assert outcome.code == 2
    assert "IM-9000-0001.jpeg: empty_file" in outcome.err
    assert not (tmp_path / "h" / "mlflow.db").exists()


def test_a_plain_grid(xray, tiny, client):
    outcome = xray("train", "-m", *tiny, "trainer.max_epochs=1", "seed=11,12", "tracking.experiment_name=grid")
    assert outcome.code == 0, outcome.err
    experiment = client.get_experiment_by_name("grid")
    seeds = [run.data.params.get("seed") for run in client.search_runs([experiment.experiment_id])]
    assert {"11", "12"} <= set(seeds)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_signals_close_the_run(xray, tiny, client, monkeypatch, number, code):
    """A second one, while the run is being closed, changes nothing; silent/test_environment.py asks a real process.

    SIGTERM comes in a destructor, where Python swallows what is raised, and Lightning would end with code 0.
    """

    class Garbage:
        def __del__(self):
            signal.raise_signal(number)

    def hear():
        Garbage() if number == signal.SIGTERM and not errors.signals else signal.raise_signal(number)

    for owner, name in ((PneumoniaClassifier, "training_step"), (Sender, "finish")):
        plain = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, plain=plain: (hear(), plain(*given))[1])
    outcome = xray("train", *tiny, f"tracking.experiment_name=signal{code}")
    assert outcome.code == code, outcome.err
    assert "already closing the run" in outcome.err
    assert "Traceback" not in outcome.err
    [run] = client.search_runs([client.get_experiment_by_name(f"signal{code}").experiment_id])
    assert run.info.status == "KILLED"


SEED_CNN = ["model=cnn", "model.filters=[8,16]", "model.activations=[relu,tanh]", "model.dense=16"]  # no batch norm


class Pooled(torch.nn.Module):
    """Normalises over the batch what it pooled to one value an image."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(1)

    def forward(self, images):
        return self.norm(images.float().mean((2, 3), keepdim=True)).flatten()


def test_a_last_batch_of_one_image_is_refused_before_the_first_step():
    net, state = Pooled(), torch.random.get_rng_state()
    with pytest.raises(InputError, match=r"batch_size=64: leaves one of 129 .*; set data\.batch_size=65"):
        require_last_batch(net, 129, 64, [32])
    require_last_batch(net, 130, 64, [32])
    require_last_batch(torch.nn.Flatten(), 129, 64, [32])
    assert net.norm.num_batches_tracked == 0
    assert torch.equal(torch.random.get_rng_state(), state)


HALF = 11  # images; 60 are two whole steps of 22 and one of 16, of which each of two processes takes half


@pytest.mark.slow
def test_two_processes_train_as_one_whose_batches_are_twice_as_large(start, xray, tiny, client, folder):
    """Within 1e-6 where images divide evenly; where not, an epoch's first ones come again at its end."""
    asked = [override for override in tiny if not override.startswith(("model", "augmentation"))]
    asked = ["train", *asked, *SEED_CNN, "optimizer=sgd", "augmentation=light", "data.val_fraction=0.25"]
    process = start(*asked, "trainer=ddp", f"data.batch_size={HALF}", "tracking.experiment_name=ddp")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Best of 2 epochs" in out
    two = out.splitlines()[-1].split()[0].removeprefix("run_id=")
    assert len(client.search_runs([client.get_run(two).info.experiment_id])) == 1
    whole = xray(*asked, f"data.batch_size={2 * HALF}")
    assert whole.code == 0, whole.err
    one = whole.run_id
    weights = [torch.load(folder(run) / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (one, two)]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-6)
    for key in PER_EPOCH:
        if not key.startswith("time/"):
            histories = [[(m.step, m.value) for m in client.get_metric_history(run, key)] for run in (one, two)]
            assert [step for step, _ in histories[1]] == [1, 2]
            np.testing.assert_allclose(histories[1], histories[0], atol=1e-6, err_msg=key)


@pytest.mark.slow
def test_it_learns(xray, home):
    easy = ["data=synthetic", "data.image_size=64", "trainer.max_epochs=15", "augmentation=none", "evaluation=quick"]
    outcome = xray("train", *easy, f"home={home}", "seed=1")
    assert float(outcome.out.splitlines()[-1].split("val/auroc=")[1]) > 0.85


def test_a_net_of_one_size_refuses_to_grow(xray, tiny):
    asked = [override for override in tiny if not override.startswith("model")]
    done = xray("train", *asked, "model=mlp", "data.progressive=[16,32]")
    assert done.code == 2
    assert "data.progressive=[16, 32]: this net takes no images of 16 pixels" in done.err
