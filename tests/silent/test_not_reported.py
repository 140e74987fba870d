"""What is not reported counts as absent: ranks, folders, damaged files, contradicting keys (kind A)."""

import csv
import shutil

import pytest
from mlflow import MlflowClient
from PIL import Image, ImageDraw

from xray_pneumonia.data.audit import audit
from xray_pneumonia.data.images.cache import open_cache
from xray_pneumonia.data.records import scan

SMALL = ["data=synthetic", "data.synthetic_patients=20", "data.image_size=32", "trainer=smoke", "evaluation=quick"]


def test_ranks_that_a_shell_left_over_change_nothing(start, tmp_path):
    ranks = dict.fromkeys(["RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"], "1")
    process = start("train", *SMALL, "tracking.system_metrics=false", **ranks)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert all(f"{name}=1" in err for name in ranks)
    assert "GPU available" not in err  # Lightning's own messages
    run_id = out.splitlines()[-1].split()[0].removeprefix("run_id=")
    metrics = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db").get_run(run_id).data.metrics
    assert "val/auroc" in metrics


@pytest.fixture
def locked(tmp_path, xrays):
    """A folder of images with one folder in it that may not be read."""
    folder = tmp_path / "images"
    (folder / "hidden_part").mkdir(parents=True)
    for number, file in enumerate(sorted(xrays.rglob("*.jpeg"))[:4]):
        (folder / ("hidden_part" if number % 2 else "") / file.name).write_bytes(file.read_bytes())
    (folder / "hidden_part").chmod(0)
    yield folder
    (folder / "hidden_part").chmod(0o755)


def test_predict_reports_a_folder_that_it_may_not_read(xray, locked, tmp_path, without_rights):
    done = xray("predict", f"input={locked}", "output=out", "workers=1")
    assert done.code == 3, done.err
    table = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    rows = {row["path"]: row for row in csv.DictReader(table)}
    assert len(rows) == 3
    assert rows["hidden_part"]["error"] == "unreadable"


def test_train_refuses_a_folder_that_it_may_not_read(xray, tiny, xrays, tmp_path, without_rights):
    root = shutil.copytree(xrays, tmp_path / "xrays")
    (root / "train" / "NORMAL").chmod(0)
    done = xray("train", *tiny, f"data.root={root}")
    (root / "train" / "NORMAL").chmod(0o755)
    assert done.code == 2, done.err
    assert "train/NORMAL" in done.err
    assert "cannot be read (Permission denied)" in done.err


@pytest.mark.parametrize(("monitor", "mode", "worst"), [("val/loss", "max", "most"), ("val/auroc", "min", "least")])
def test_a_mode_that_contradicts_the_monitored_metric_is_refused(xray, tiny, monitor, mode, worst):
    outcome = xray("train", *tiny, f"monitor={monitor}", f"mode={mode}")
    assert outcome.code == 2
    assert f"mode={mode}: would keep the epoch with the {worst} monitor={monitor}" in outcome.err


def test_the_best_epoch_by_loss_is_the_one_with_the_least(xray, tiny, home):
    outcome = xray("train", *tiny, "monitor=val/loss", "trainer.max_epochs=4", "optimizer.lr=0.05")
    assert outcome.code == 0, outcome.err
    assert " val/loss=" in outcome.out.splitlines()[-1]
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    history = {entry.step: entry.value for entry in client.get_metric_history(outcome.run_id, "val/loss")}
    best = client.get_run(outcome.run_id).data.metrics["best/epoch"]
    assert history[best] == min(history.values())


def test_a_class_folder_that_holds_masks_is_refused(xray, tiny, xrays, tmp_path):
    root = tmp_path / "xrays"
    shutil.copytree(xrays, root)
    for name in ("images", "masks"):
        (root / "train" / "NORMAL" / name).mkdir()
        for file in sorted((root / "train" / "NORMAL").glob("*.jpeg")):
            shutil.copy(file, root / "train" / "NORMAL" / name)
    outcome = xray("train", *tiny, f"data.root={root}")
    assert outcome.code == 2
    assert "train/NORMAL: holds a folder 'masks'" in outcome.err


def test_masks_among_the_images_are_named_by_the_audit(xrays, tmp_path):
    root = tmp_path / "xrays"
    shutil.copytree(xrays, root)
    plain = audit(open_cache(scan(root), folder=tmp_path / "cache", image_size=32))
    mask = Image.new("L", (300, 260))
    ImageDraw.Draw(mask).ellipse((40, 30, 140, 230), fill=255)
    ImageDraw.Draw(mask).ellipse((170, 30, 270, 230), fill=255)
    mask.save(root / "train" / "NORMAL" / "lungs.png")
    mask.rotate(3).save(root / "train" / "NORMAL" / "lungs.jpeg")
    found = audit(open_cache(scan(root), folder=tmp_path / "cache", image_size=32))
    [finding] = [one for one in found.findings if one.code == "masks"]
    assert (finding.count, {*finding.examples}) == (2, {"train/NORMAL/lungs.png", "train/NORMAL/lungs.jpeg"})
    assert "move them out" in finding.message
    assert "masks" not in {one.code for one in plain.findings}
