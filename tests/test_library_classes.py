"""What of other libraries, and of one's own, a config may list: callbacks, loggers, transforms, losses."""

import csv
import inspect
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from xray_pneumonia import config, library_classes
from xray_pneumonia.data.augment.augmentation import Transforms

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@pytest.fixture
def artifacts(home):
    home.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    return lambda run_id: Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))


def node(group, name, **keys):
    return {"_target_": f"{library_classes.NAMES[group][0]}.{name}", **keys}


def made(*nodes):
    return Transforms([config.build(one, key="augmentation") for one in nodes])


def test_the_example_trains_and_a_rerun_gives_the_same_bits(xray, tiny, tmp_path, artifacts):
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    asked = ["extensions=[my_extras]", "--config-dir", "conf", "experiment=extras"]
    done = xray("train", *[one for one in tiny if one != "augmentation=none"], *asked, "trainer.max_epochs=3")
    assert done.code == 0, done.err
    assert "epoch 3 is over" in done.out
    folder = artifacts(done.run_id)
    rows = list(csv.DictReader((folder / "loggers" / "csv" / "version_0" / "metrics.csv").open()))
    assert {"val/auroc", "lr-AdamW", "epoch"} <= set(rows[0])
    assert (folder / "loggers" / "json" / "metrics.jsonl").read_text().count("val/auroc") == 3
    client = MlflowClient(f"sqlite:///{folder.parents[2].parent}/mlflow.db")
    for name in ("lr-AdamW", "val/youden"):
        assert [one.step for one in client.get_metric_history(done.run_id, name)] == [1, 2, 3]
    home = next(one for one in tiny if one.startswith("home="))
    again = xray("reproduce", f"run_id={done.run_id}", home, "extensions=[my_extras]")
    assert again.out.splitlines()[-1].endswith("verdict=bit-identical"), again.err


@pytest.mark.parametrize("model", ["resnet", "cnn"])
def test_averaged_weights_are_kept_and_evaluated(xray, tiny, artifacts, model):
    """With batch norms Lightning adds an epoch that measures them; without, it averages after the last one."""
    net = [] if model == "resnet" else ["model=cnn", "model.filters=[4]", "model.activations=[relu]", "model.dense=4"]
    swa = "callbacks=[{_target_:pytorch_lightning.callbacks.StochasticWeightAveraging,swa_lrs:0.01,swa_epoch_start:1}]"
    others = [one for one in tiny if model == "resnet" or not one.startswith("model")]
    kept = ["trainer.keep=last", "trainer.patience=null", "scheduler=constant"]
    done = xray("train", *others, *net, swa, *kept)
    assert done.code == 0, done.err
    best, last = (
        torch.load(artifacts(done.run_id) / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
        for name in ("best", "last")
    )
    assert all(torch.equal(best[name], last[name]) for name in best)
    assert "trainer.keep=best would not keep" in xray("train", *others, *net, swa).err


REFUSED = {
    "callbacks=[{_target_:pytorch_lightning.callbacks.LambdaCallback}]": "not on the list",
    "callbacks=[{_target_:lightning.pytorch.callbacks.Timer}]": "did you mean pytorch_lightning.callbacks.Timer or",
    "callbacks=[{_target_:pytorch_lightning.callbacks.Timer,durations:1}]": "did you mean callbacks.0.duration?",
    "callbacks=[{_target_:pytorch_lightning.callbacks.EarlyStopping,monitor:3}]": "callbacks.0.monitor=3: should be",
    "loggers=[{_target_:pytorch_lightning.loggers.CSVLogger,save_dir:/etc}]": "loggers.0.save_dir='/etc': unknown key",
    "augmentation.transforms=[{_target_:albumentations.Lambda,image:1}]": "albumentations.Lambda': not on the list",
    "augmentation.transforms=[{_target_:albumentations.TextImage,font_path:/etc/passwd}]": "not on the list",
    "augmentation.transforms=[{_target_:albumentations.Blur,blur_limt:3}]": "transforms.0.blur_limit",
    "augmentation.transforms=[{_target_:albumentations.RandomCrop,height:8,width:8}]": "give uint8 (8, 8) for uint8",
    "loss._target_=torch.nn.BCELoss": "loss._target_='torch.nn.BCELoss': not on the list",
    "loss._target_=torch.nn.MSELoss loss.reduction=none": "loss: MSELoss: gives tensor",
    "optimizer._target_=torch.optim.NAdam optimizer.lrr=1": "optimizer.lrr=1: unknown key",
    "model._target_=pytorch_lightning.callbacks.Timer": "not on the list",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_is_wrong_is_said_before_any_data_are_read(xray, overrides):
    done = xray("train", "data.root=none", "trainer=cpu", *overrides.split())
    assert done.code == 2, done.err
    assert REFUSED[overrides] in done.err, done.err


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_logger_whose_package_is_missing_names_the_extra(xray, monkeypatch, package):
    monkeypatch.setattr("xray_pneumonia.workflows.loggers.find_spec", lambda name: None)
    kind = {"tensorboard": "TensorBoardLogger", "wandb": "WandbLogger"}[package]
    done = xray("train", "data.root=none", f"loggers=[{{_target_:pytorch_lightning.loggers.{kind}}}]")
    assert f"pip install 'xray-pneumonia[{package}]'" in done.err


def test_losses_optimizers_and_schedules_of_torch_train(xray, tiny):
    asked = [
        "loss._target_=torch.nn.BCEWithLogitsLoss", "loss.pos_weight=2", "optimizer._target_=torch.optim.NAdam",
        "optimizer.lr=0.01", "scheduler._target_=torch.optim.lr_scheduler.StepLR", "scheduler.step_size=1",
    ]  # fmt: skip
    done = xray("train", *tiny, *asked, "trainer.max_epochs=1")
    assert done.code == 0, done.err


def test_transforms_draw_by_seed_epoch_and_record_and_each_for_itself():
    pair = [node("augmentation", "HorizontalFlip"), node("augmentation", "VerticalFlip")]
    transforms = made(*pair, node("augmentation", "Sequential", transforms=pair, p=1))
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16), np.uint8)
    changed = transforms(images.copy(), entropy=[1, 2], records=range(64))
    rows = [5, 3, 60]
    assert np.array_equal(transforms(images[rows].copy(), entropy=[1, 2], records=rows), changed[rows])
    assert not np.array_equal(transforms(images.copy(), entropy=[1, 3], records=range(64)), changed)
    inner = made(node("augmentation", "Sequential", transforms=pair, p=1))(
        images.copy(), entropy=[1], records=range(64)
    )
    turned = sum(np.array_equal(one, image[::-1, ::-1]) for one, image in zip(inner, images, strict=True))
    same = sum(np.array_equal(one, image) for one, image in zip(inner, images, strict=True))
    assert turned + same < 48  # flips with one seed would come together or not at all


def test_nothing_that_may_be_named_takes_a_function_or_a_file():
    for target in library_classes.targets():
        taken = inspect.signature(config.locate(target)).parameters
        keys = set(taken) - {
            *library_classes.PLACES,
            "avg_fn",
            "add_file_policy",
        }  # pydantic takes no text for a function
        assert not {name for name in keys if "path" in name or "file" in name or name.endswith("_fn")}, target
        assert not target.endswith("Lambda")
