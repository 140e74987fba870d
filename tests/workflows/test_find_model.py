"""Models by whatever name they go: registered, exported, served; the run was stored, but never trained."""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from xray_pneumonia.config import build, plain
from xray_pneumonia.data.images.decode import decode
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.input_gate import fit_thumbnail_gate
from xray_pneumonia.inference.bundle import Card, save_bundle
from xray_pneumonia.tracking.run import start_run
from xray_pneumonia.tracking.store import TrackingSettings, open_store
from xray_pneumonia.workflows import find_model
from xray_pneumonia.workflows.find_model import find_and_load

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Any type hint is inferred.*", "ignore:.*An input example was not provided.*"
)
TRACKING = TrackingSettings(uri=None, experiment_name="models", run_name=None, system_metrics=False, required=False)
MODEL = ["model=resnet", "model.width=4", "model.depth=1", "model.stages=2", "data.image_size=32"]


@pytest.fixture(scope="module")
def store_run(home, xrays):
    """Store a run as a training would."""
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        cfg = compose("train", [f"home={home}", f"data.root={xrays}", *MODEL])

    def make(seed):
        torch.manual_seed(seed)
        files = sorted(xrays.rglob("*.jpeg"))[::7]
        films = np.stack([decode(path.read_bytes(), 32).pixels for path in files])
        with start_run(open_store(TRACKING, home=home), name="it", tags={}, system_metrics=False) as run:
            run.log_config(OmegaConf.to_yaml(cfg, resolve=True))
            ids = [path.relative_to(xrays).as_posix() for path in files]
            table = {"id": ids, "patient": ids, "subtype": "", "label": 0, "logit": 0.0, "probability": 0.5}
            pd.DataFrame(table).to_csv(run.path("predictions/val.csv"), index=False)
            card = Card(
                net=plain(cfg.model), class_names=["NORMAL", "PNEUMONIA"], image_size=32, temperature=0.5, bias=0.1,
                operating_point=0.5, operating_point_policy="youden", band=[0.45, 0.55], records_fingerprint="",
                run_id=run.run_id, versions={},
            )  # fmt: skip
            net = build(cfg.model)
            torch.nn.init.normal_(net.head[-1].weight)
            folder = run.path("staged/x").parent
            save_bundle(folder, net, card)
            fit_thumbnail_gate(films, films).write(folder / "gate.npz")
            shutil.copyfile(run.folder / "config.yaml", folder / "config.yaml")
            run.log_model(folder, epoch=1, loader_module="xray_pneumonia.workflows.serve")
        return run

    return make


@pytest.fixture(scope="module")
def run(store_run):
    return store_run(0)


@pytest.fixture
def films(xrays):
    return np.stack([decode(path.read_bytes(), 32).pixels for path in sorted(xrays.rglob("*.jpeg"))[:12]])


def read(model, home, images):
    return find_and_load(model, tracking=TRACKING, home=home).probabilities(images).tolist()


def test_a_registered_model_is_found_by_its_alias_which_moves(xray, home, run, store_run, films):
    places = [f"home={home}", "tracking.experiment_name=models"]
    done = xray("register", f"run_id={run.run_id}", *places)
    assert (done.code, "models@champion is version 1" in done.out) == (0, True), done.err
    assert "version 1" in xray("register", f"run_id={run.run_id}", "alias=again", *places).out
    expected = read(run.run_id, home, films)
    assert read("models@champion", home, films) == read("models@again", home, films) == expected
    later = store_run(1)
    assert "models@champion is version 2" in xray("register", f"run_id={later.run_id}", *places).out
    assert read("models@champion", home, films) == read(later.run_id, home, films) != expected
    assert read("models@again", home, films) == expected
    assert "mine@best is version 1" in xray("register", f"run_id={run.run_id}", "name=mine", "alias=best", *places).out
    assert read("mine@best", home, films) == expected
    assert not list(Path.cwd().iterdir()), "MLflow's own store was touched"


def test_a_registered_version_with_other_files_is_refused(home, run, store_run, films):
    other = store_run(2)
    client = run.store.client
    model = client.get_run(other.run_id).data.tags["model_id"]
    client.create_registered_model("forged")
    place = client.get_logged_model(model).artifact_location
    version = client.create_model_version("forged", place, run_id=run.run_id)
    client.set_registered_model_alias("forged", "champion", version.version)
    with pytest.raises(InputError, match="are not those of its run"):
        read("forged@champion", home, films)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["register", "run_id=abc"], "32 hex digits"),
        (["register", f"run_id={'a' * 32}"], "no such run"),
        (["register", "run_id=RUN", "alias=a b"], "an alias has letters"),
        (["register", "run_id=RUN", "name=a/b"], "a name has no /"),
        (["export", "output=out"], "name one of them"),
        (["export", "run_id=RUN", "model=x", "output=out"], "name one of them"),
        (["export", "model=models@nobody", "output=out"], "no such model"),
        (["export", "model=nothing", "output=out"], "no such model"),
        (["export", "model=.", "output=out"], "holds neither"),
        (["export", "run_id=RUN", "output=out", "input=nowhere"], "no readable X-ray"),
        (["export", "run_id=RUN", "output=file"], "is a file"),
        (["export", "run_id=RUN", "output=out", "format=pickle"], "format='pickle'"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(xray, home, run, tmp_path, arguments, says):
    (tmp_path / "file").write_text("")
    done = xray(*(one.replace("RUN", run.run_id) for one in arguments), f"home={home}")
    assert (done.code, says in done.err, "Traceback" in done.err) == (2, True, False), done.err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_an_export_is_checked_on_validation_files_and_answers_alone(xray, home, run, films, tmp_path):
    done = xray("export", f"run_id={run.run_id}", "output=out", f"home={home}")
    assert done.code == 0, done.err
    assert "(validation files of the run)" in done.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gate.npz", "model.onnx"]
    alone = find_and_load("out/model.onnx", tracking=TRACKING, home=Path("none"))
    assert alone.probabilities(films) == pytest.approx(read(run.run_id, home, films), abs=1e-6)
    assert alone.decide(films)["gate"].notna().all()
    assert not Path("none").exists()


def test_a_bundle_is_taken_away_whole(xray, home, run, films, tmp_path, monkeypatch):
    done = xray("export", f"run_id={run.run_id}", "output=my model", "format=bundle", f"home={home}")
    assert done.code == 0, done.err
    names = ["config.yaml", "gate.npz", "model.json", "model.onnx", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "my model").iterdir()) == names
    assert read("my model", Path("none"), films) == read(run.run_id, home, films)
    mixed = xray("export", "model=my model", "output=my model/../my model", "home=none")
    assert mixed.code == 0, mixed.err  # the graph of this very model
    assert "Exported: gate.npz, model.onnx in" in mixed.out
    mixed = xray("export", f"run_id={run.run_id}", "output=my model", f"home={home}")
    says = "holds model.safetensors, model.json, config.yaml of another export"
    assert (mixed.code, says in mixed.err) == (2, True), mixed.err
    again = xray("export", "model=my model", "output=again", "home=none")
    assert (again.code, "(generated X-rays)" in again.out) == (0, True), again.err
    monkeypatch.setattr(find_model, "shipped_models", lambda: {"final": tmp_path / "my model"})
    assert read("final", Path("none"), films) == read(run.run_id, home, films)


def test_an_export_that_answers_otherwise_is_not_kept(xray, home, run, tmp_path, monkeypatch):
    from xray_pneumonia.workflows import export

    real = export.write_graph

    def slightly_off(model, path):
        with torch.no_grad():
            model.net.head[-1].bias += 0.01
            real(model, path)
            model.net.head[-1].bias -= 0.01

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.onnx").write_text("the one before")
    monkeypatch.setattr(export, "write_graph", slightly_off)
    done = xray("export", f"run_id={run.run_id}", "output=out", f"home={home}")
    assert (done.code, "nothing is kept" in done.err) == (1, True), done.err
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["the one before"]


def jpegs(root):
    return [path.read_bytes() for path in sorted(root.rglob("*.jpeg"))[:12]]


def test_mlflow_loads_it_and_gets_calibrated_answers(home, run, xrays, films):
    from mlflow.pyfunc import load_model

    from xray_pneumonia.tracking.registry import tracking_uri

    with tracking_uri(run.store.uri):
        model = load_model(f"models:/{run.store.client.get_run(run.run_id).data.tags['model_id']}")
    files = jpegs(xrays)
    expected = find_and_load(run.run_id, tracking=TRACKING, home=home).decide(films)
    texts = [base64.b64encode(one).decode() for one in files]
    for given in (
        pd.DataFrame({"image": files}),
        {"image": files},
        pd.DataFrame({"pixels": [film.astype(np.int64).tolist() for film in films]}),
    ):
        table = model.predict(given)
        assert table["probability"].tolist() == pytest.approx(expected["probability"].tolist(), abs=1e-6)
        for column in ("label", "answer", "abstention", "operating_point"):
            assert table[column].tolist() == expected[column].tolist()
    served = model._model_impl
    with pytest.raises(InputError, match="kept no prevalence"):  # this card names none
        model.predict({"image": files}, params={"prevalence": 0.05})
    table = served.predict(pd.DataFrame({"image": [texts[0], b"no image", texts[1], "%"]}))
    assert table["probability"].isna().tolist() == [False, True, False, True]
    assert table["abstention"].iloc[1] == "unreadable: its content is neither PNG nor JPEG nor DICOM"
    assert table["answer"].iloc[1] == "look closer"
    with pytest.raises(ValueError, match="give `image`"):
        served.predict({"file": ["x"]})


@pytest.mark.long
def test_mlflow_serves_it(home, run, xrays, films):
    if shutil.which("uvicorn") is None and not (Path(sys.executable).parent / "uvicorn").exists():
        pytest.skip("uvicorn, which MLflow serves with, is not on the path")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = run.store.client.get_run(run.run_id).data.tags["model_id"]
    binaries = Path(sys.executable).parent
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{model}", "--env-manager", "local"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": run.store.uri, "PATH": f"{binaries}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2] / "src")  # of whichever interpreter uvicorn has
    server = subprocess.Popen([*command, "--port", str(port), "--host", "127.0.0.1"], env=environment)
    try:
        rows = [[base64.b64encode(one).decode()] for one in jpegs(xrays)]
        body = json.dumps({"dataframe_split": {"columns": ["image"], "data": rows}}).encode()
        headers = {"Content-Type": "application/json"}
        for _ in range(300):
            assert server.poll() is None, "the server has ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                break
            except OSError:
                time.sleep(1)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, headers)
        answers = json.load(urllib.request.urlopen(request, timeout=60))["predictions"]
    finally:
        server.terminate()
        server.wait(30)
    expected = find_and_load(run.run_id, tracking=TRACKING, home=home).decide(films)
    assert [one["probability"] for one in answers] == pytest.approx(expected["probability"].tolist(), abs=1e-6)
    assert [one["label"] for one in answers] == expected["label"].tolist()
    assert [one["abstention"] for one in answers] == expected["abstention"].tolist()
