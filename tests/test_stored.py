"""What version 0.1.0 wrote is still read: weights, runs, checkpoints, configs, sweeps (see `stored/README.md`)."""

import contextlib
import hashlib
import json
import shutil
import sqlite3
import tarfile
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from scipy.special import expit

from xray_pneumonia.data import synthetic
from xray_pneumonia.data.images.decode import decode, read_bytes
from xray_pneumonia.errors import InputError
from xray_pneumonia.inference.loading import load_model
from xray_pneumonia.workflows.find_model import shipped_models

STORED = Path(__file__).parent / "stored"
BIRTHPLACE = Path("/tmp/xray_stored")  # where the stored runs were made: resuming one asks for its images there
RUN = "ff04f27815b142f38213c97dd974077d"
STOPPED, KILLED = "09a8cb1693714819910fb88521cc7654", "512d836864fc4a0ebacfa468ce913a2c"
TRAINING = [
    "data=synthetic", "data.synthetic_patients=20", "data.image_size=32", "model=resnet", "model.width=4",
    "model.depth=1", "model.stages=2", "trainer=cpu", "trainer.threads=1", "trainer.patience=null", "evaluation=quick",
    "augmentation=light", "tracking.system_metrics=false",
]  # fmt: skip


def unpack(folder):
    """Lay out the stored home in a folder; returns its path."""
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(STORED / "home.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    synthetic.generate(folder / "mlruns" / "synthetic" / "20", patients=20, seed=0)
    return folder / "mlruns"


@pytest.fixture
def moved(tmp_path):
    """The stored home in another place than the one it was made in."""
    return unpack(tmp_path / "moved")


@pytest.fixture
def at_birthplace(start):
    """Run commands where the stored runs were made, each in a process of its own: none has the database open before."""

    def run(*arguments):
        process = start(*arguments, f"home={BIRTHPLACE}/mlruns", OMP_NUM_THREADS="1")
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    with FileLock(f"{BIRTHPLACE}.lock"):
        unpack(BIRTHPLACE)
        yield run
        shutil.rmtree(BIRTHPLACE)


SHIPPED = sorted(shipped_models())


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=pytest.mark.slow) if "_seed" in one else one for one in SHIPPED]
)
def test_shipped_models_answer_as_when_they_were_shipped(real_xrays, name):
    stored = json.loads((STORED / "shipped_answers.json").read_text())
    files = [read_bytes(real_xrays / path) for path in stored]
    assert [hashlib.sha256(one).hexdigest() for one in files] == [one["sha256"] for one in stored.values()]
    model = load_model(shipped_models()[name], name=name)
    pixels = np.stack([decode(one, model.card.image_size).pixels for one in files])
    expected = [one[name] for one in stored.values()]
    assert model.decide(pixels)["probability"].tolist() == pytest.approx(expected, abs=1e-6)


def test_cards_of_the_first_version_are_read(tmp_path):
    """Cards of 0.1.0, around the weights of today: a bias that holds a prevalence, and none named."""
    shipped, stored = shipped_models(), json.loads((STORED / "shipped_cards.json").read_text())
    images = np.random.default_rng(0).integers(0, 256, (4, 128, 128), dtype=np.uint8)
    expected = {}
    for path in sorted(stored, key=lambda one: one.endswith("ensemble.json")):
        folder, card = tmp_path / Path(path).parent, stored[path]
        folder.mkdir()
        for one in card.get("members", [card]):
            weights = shipped[one.get("name", folder.name)] / "model.safetensors"
            one["weights_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
        (tmp_path / path).write_text(json.dumps(card))
        if "members" in card:
            raw, card = np.mean([expected[one["name"]] for one in card["members"]], axis=0), card["card"]
        else:
            shutil.copyfile(weights, folder / "model.safetensors")
            raw = load_model(shipped[folder.name], name="now").uncalibrated_logits(images)
        expected[folder.name] = raw / card["temperature"] + card["bias"]
        if folder.name in {"final", "final_ensemble"}:
            model = load_model(folder, name=folder.name)
            answers = model.decide(images)
            assert answers["probability"].to_numpy() == pytest.approx(expit(expected[folder.name]), abs=1e-6)
            assert answers["prevalence"].isna().all()
            with pytest.raises(InputError, match="kept no prevalence"):
                model.at(0.05)


def test_an_old_run_is_evaluated_and_compared_in_another_place(xray, moved):
    place = [f"home={moved}", f"data.root={moved}/synthetic/20"]
    outcome = xray("evaluate", f"run_id={RUN}", "split=val", *place, "evaluation=quick")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1].endswith("val/auroc=0.388889")
    outcome = xray("compare", f"run_ids=[{RUN}]", f"home={moved}")
    assert outcome.code == 0, outcome.err
    assert "0.3889" in outcome.out
    outcome = xray("predict", f"model={RUN}", f"input={moved}/synthetic/20/val", "output=out", f"home={moved}")
    assert outcome.code == 0, outcome.err


@pytest.mark.slow
def test_an_old_run_is_reproduced(at_birthplace):
    code, out, err = at_birthplace("reproduce", f"run_id={RUN}")
    assert code == 0, err
    assert "verdict=bit-identical" in out or "verdict=within" in out


@pytest.mark.slow
def test_an_old_checkpoint_is_resumed_or_refused_with_a_reason(at_birthplace):
    code, out, err = at_birthplace("train", f"resume={STOPPED}")
    if code:
        assert code == 2
        assert f"resume={STOPPED}: " in err
    else:
        assert out.splitlines()[-1] == f"run_id={STOPPED} val/auroc=0.722222"


def test_an_old_journal_is_sent(at_birthplace):
    code, out, err = at_birthplace("doctor", "sync")
    assert code == 0, err
    assert out.splitlines()[-1].endswith("unsent=0 stale=0"), out
    assert not any((BIRTHPLACE / "mlruns" / "journal").iterdir())


def test_an_old_journal_is_sent_to_the_database_that_was_moved_with_it(xray, moved):
    outcome = xray("doctor", "sync", f"home={moved}")
    assert outcome.code == 0, outcome.err
    assert f"run {KILLED}" in outcome.out
    assert outcome.out.splitlines()[-1].endswith("unsent=0 stale=0")
    assert not any((moved / "journal").iterdir())
    with contextlib.closing(sqlite3.connect(moved / "mlflow.db")) as database:
        assert database.execute("SELECT status FROM runs WHERE run_uuid = ?", [KILLED]).fetchall() == [("KILLED",)]


def test_an_old_sweep_is_listed_and_continued(at_birthplace):
    code, out, err = at_birthplace("sweeps")
    assert "old_sweep" in out
    assert "2 of 2" in out
    command = ["train", "-m", *TRAINING, "trainer.max_epochs=2", "optimizer.lr=1e-3,1e-4"]
    code, out, err = at_birthplace(*command, "sweep.name=old_sweep")
    assert code == 0, err
    assert "trials=2 val/auroc=0.388889" in out.splitlines()[-1]
