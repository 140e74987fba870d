"""What is not reported counts as absent: ranks, folders, damaged files, contradicting keys (kind A)."""

import csv
import os
import shutil
from contextlib import chdir
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image, ImageDraw

from xray_pneumonia.data.audit import audit
from xray_pneumonia.data.images.cache import open_cache
from xray_pneumonia.data.layouts import index
from xray_pneumonia.data.local_sample import scan_local
from xray_pneumonia.data.records import scan, scan_external
from xray_pneumonia.errors import InputError

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


def nest(folder):
    """Make a folder in a folder until no path reaches the innermost."""
    with chdir(folder):
        for _ in range(17):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)


@pytest.fixture
def locked(tmp_path, xrays):
    """A folder of images with one folder in it that may not be read, and one that is nested too deep."""
    folder = tmp_path / "images"
    (folder / "hidden_part").mkdir(parents=True)
    for number, file in enumerate(sorted(xrays.rglob("*.jpeg"))[:4]):
        (folder / ("hidden_part" if number % 2 else "") / file.name).write_bytes(file.read_bytes())
    (folder / "hidden_part").chmod(0)
    nest(folder)
    yield folder
    (folder / "hidden_part").chmod(0o755)


def test_predict_reports_the_folders_that_it_cannot_read(xray, locked, tmp_path, without_rights):
    done = xray("predict", f"input={locked}", "output=out", "workers=1")
    assert done.code == 3, done.err
    table = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    errors = [(row["path"][:11], row["error"]) for row in csv.DictReader(table) if row["error"]]
    assert errors == [("hidden_part", "unreadable"), ("d" * 11, "unreadable")]
    assert len(table) == 1 + 2 + 2


@pytest.fixture(params=["train", "train/NORMAL", "train/NORMAL/inner", "too deep"])
def unreadable(request, xrays, tmp_path, without_rights):
    """Data with a folder that cannot be read; the folder, and why."""
    root = Path(shutil.copytree(xrays, tmp_path / "xrays"))
    inner = root / "train" / "NORMAL" / "inner"
    inner.mkdir()
    if request.param == "too deep":
        nest(inner)
        yield root, inner, "its path is too long"
        return
    (root / request.param).chmod(0)
    yield root, root / request.param, "Permission denied"
    (root / request.param).chmod(0o755)


@pytest.mark.parametrize("unreadable", ["train", "too deep"], indirect=True)
def test_train_refuses_a_folder_that_it_cannot_read(xray, tiny, unreadable):
    root, place, why = unreadable
    done = xray("train", *tiny, f"data.root={root}")
    assert done.code == 2, done.err
    assert f"xray: {place}" in done.err
    assert f": cannot be read ({why}); its images would be left out" in done.err


VERBS = ["train", "evaluate", "adapt", "adapt by labels.csv", "index"]


def labelled(root):
    (root.parent / "labels.csv").write_text("sha256,label\n0,NORMAL\n")
    return scan_local(root, labels=str(root.parent / "labels.csv"))


@pytest.mark.parametrize("read", [scan, scan_external, scan_local, labelled, partial(index, "nih")], ids=VERBS)
def test_no_reader_of_data_leaves_out_what_it_cannot_read(read, unreadable):
    root, place, why = unreadable
    with pytest.raises(InputError, match=f"^{place}.*: cannot be read .{why}.; its images would be left out"):
        read(root)


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
