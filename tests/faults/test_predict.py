"""Faults of `xray predict`: killed among a thousand files, one bad file among them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from hydra import compose, initialize_config_module

from xray_pneumonia.config import build, plain
from xray_pneumonia.data import synthetic
from xray_pneumonia.inference.bundle import Card, save_bundle

pytestmark = pytest.mark.slow
FILES = 1000
SIDE = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        node = compose("train", ["model=mlp", f"data.image_size={SIDE}"]).model
    torch.manual_seed(0)
    card = {
        "net": plain(node), "class_names": ["NORMAL", "PNEUMONIA"], "image_size": SIDE, "temperature": 1.0,
        "operating_point": 0.5, "operating_point_policy": "youden", "records_fingerprint": "", "run_id": "0" * 32,
        "versions": {}, "band": [0.4, 0.6],
    }  # fmt: skip
    save_bundle(folder, build(node).eval(), Card(**card))
    return folder


@pytest.fixture(scope="module")
def thousand(tmp_path_factory, xrays):
    """A thousand names for eighty films."""
    folder = tmp_path_factory.mktemp("thousand")
    films = sorted(xrays.rglob("*.jpeg"))
    for number in range(FILES):
        os.link(films[number % len(films)], folder / f"{number:04}.jpeg")
    return folder


def rows(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def answers(folder):
    """All but what depends on when a file was linked."""
    return [{key: value for key, value in row.items() if key != "stamp"} for row in rows(folder)]


def test_f35_a_killed_predict_goes_on_and_ends_as_if_it_had_not_been(start, xray, tmp_path, thousand, model):
    command = ["predict", f"model={model}", f"input={thousand}", "workers=1", "sheet_images=10"]
    for after in (1, 300, 600):
        process = start(*command, "output=out", "batch_size=20")
        table = tmp_path / "out" / "predictions.jsonl"
        while not (table.exists() and table.read_bytes().count(b"\n") >= after):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        found = table.read_bytes().splitlines(keepends=True)
        assert after <= len(found) < FILES
        assert all(json.loads(line)["decision"] for line in found if line.endswith(b"\n"))
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive, "children outlive their parent"
    before = len(rows(tmp_path / "out"))
    outcome = xray(*command, "output=out")
    assert outcome.code == 0
    assert f"goes on where it stopped: {FILES - before} files are left" in outcome.err
    assert xray(*command, "output=whole").code == 0
    assert len(rows(tmp_path / "out")) == FILES
    assert answers(tmp_path / "out") == answers(tmp_path / "whole")
    assert (tmp_path / "out/predictions.csv").read_bytes() == (tmp_path / "whole/predictions.csv").read_bytes()


def test_f36_one_bad_image_among_a_thousand_is_one_row(xray, tmp_path, thousand, model):
    (thousand / "0500.jpeg").unlink()
    (thousand / "0500.jpeg").write_bytes((thousand / "0501.jpeg").read_bytes()[:700])
    try:
        outcome = xray("predict", f"model={model}", f"input={thousand}", "output=out", "workers=1", "sheet_images=10")
    finally:
        shutil.copy(thousand / "0501.jpeg", thousand / "0500.jpeg")
    assert outcome.code == 3
    assert "1 of 1000 files could not be read (truncated 1)" in outcome.err
    found = rows(tmp_path / "out")
    assert [row["path"] for row in found if row["error"]] == ["0500.jpeg"]
    assert sum(row["probability"] is not None for row in found) == FILES - 1


def test_f36_one_bad_image_among_a_thousand_stops_a_training_or_is_left_out(xray, tmp_path, tiny):
    synthetic.generate(tmp_path / "many", patients=520, seed=3)
    films = sorted((tmp_path / "many").rglob("*.jpeg"))
    assert len(films) > 900
    bad = films[500]
    bad.write_bytes(bad.read_bytes()[:700])
    command = [*(one for one in tiny if not one.startswith("data.root")), f"data.root={tmp_path / 'many'}"]
    outcome = xray("train", *command, "trainer.max_epochs=1")
    assert outcome.code == 2
    assert bad.name in outcome.err
    assert "data.broken=quarantine" in outcome.err
    outcome = xray("train", *command, "trainer.max_epochs=1", "data.broken=quarantine")
    assert outcome.code == 0, outcome.err


@pytest.mark.long
def test_ten_thousand_files_in_flat_memory(tmp_path, xrays, model):
    films = sorted(xrays.rglob("*.jpeg"))
    (tmp_path / "in").mkdir()
    for number in range(10_000):
        os.link(films[number % len(films)], tmp_path / "in" / f"{number:05}.jpeg")
    peaks = {}
    for count in (1_000, 10_000):
        if count == 1_000:
            (tmp_path / "few").mkdir()
            for film in sorted((tmp_path / "in").iterdir())[:count]:
                os.link(film, tmp_path / "few" / film.name)
        program = (
            "import resource, sys; from xray_pneumonia import cli; code = cli.main(); "
            "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
        )
        source = "few" if count == 1_000 else "in"
        command = [sys.executable, "-c", program, "predict", f"model={model}", f"input={source}", f"output=o{count}"]
        done = subprocess.run([*command, "sheet_images=100"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks[count] = int(done.stdout.split("PEAK")[1]) / 1024
    assert peaks[10_000] < peaks[1_000] + 60, peaks
