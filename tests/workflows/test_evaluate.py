"""`xray evaluate` on a run that was stored, but never trained: its weights are random."""

import json
import re
import shutil
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from xray_pneumonia.config import build, plain
from xray_pneumonia.data.images.decode import decode, read_bytes
from xray_pneumonia.data.records import fingerprint
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.inference.bundle import Card, save_bundle
from xray_pneumonia.inference.model import run_net
from xray_pneumonia.tracking.ledger import openings
from xray_pneumonia.tracking.run import start_run
from xray_pneumonia.tracking.store import open_store
from xray_pneumonia.types import CLASSES
from xray_pneumonia.whole_files import file_sha256
from xray_pneumonia.workflows.find_model import find_and_load
from xray_pneumonia.workflows.validation import assess_validation

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Any type hint is inferred.*", "ignore:.*An input example was not provided.*"
)
QUICK = ["evaluation=quick", "evaluation.replicates=100"]
MODEL = ["model=cnn", "model.filters=[4]", "model.activations=[relu]", "model.dense=4", "data.image_size=32"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def store_run(home):
    """Store a run as a training would; returns its id, and how to store more."""
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        cfg = compose("train", [f"home={home}", "data=synthetic", "data.synthetic_patients=60", *MODEL, *QUICK])
    data = build(cfg.data, build(cfg.augmentation))
    data.prepare()
    settings = build(cfg.evaluation)

    def make(seed, *, fixed=False, changes=None):
        torch.manual_seed(seed)
        net = build(cfg.model).eval()
        store = open_store(build(cfg.tracking), home=home)
        with start_run(store, name=f"seed {seed}", tags={"verb": "train"}, system_metrics=False) as run:
            run.log_config(OmegaConf.to_yaml(cfg, resolve=True))
            run.set_tags({"records_fingerprint": fingerprint(data.records)})
            rows = np.flatnonzero(data.records["split"] == "val")
            table = predictions.tabulate(data.records, rows, run_net(net, data.images[rows]))
            chosen = assess_validation(run, plain(cfg), net, data, table, settings=settings)
            predictions.write(chosen.predictions, run.path("predictions/val.csv"))
            card = {
                "net": plain(cfg.model), "class_names": list(CLASSES), "image_size": 32, "run_id": run.run_id,
                **vars(chosen.decision.calibration), "operating_point": chosen.decision.threshold,
                "operating_point_policy": "fixed at 0.5" if fixed else chosen.decision.policy,
                "records_fingerprint": "", "versions": {}, "band": [0.4, 0.6],
            }  # fmt: skip
            folder = run.path("staged/model.json").parent
            save_bundle(folder, net, Card(**card | (changes or {})))
            chosen.gate.write(folder / "gate.npz")
            run.log_model(folder, epoch=1, loader_module="xray_pneumonia.workflows.serve")
        return run

    return make


@pytest.fixture(scope="module")
def run(store_run):
    return store_run(0)


@pytest.fixture
def root(run):
    """The folder of the run's images."""
    return Path(OmegaConf.load(run.folder / "config.yaml").data.root)


@pytest.fixture
def evaluate(xray, home):
    """Run the command; returns exit code, output and errors."""
    return lambda *arguments: astuple(xray("evaluate", f"home={home}", *QUICK, *arguments))


def folder_of(out, *, what="Report"):
    written = next(line for line in out.splitlines() if line.startswith(f"{what}: "))
    path = Path(written.removeprefix(f"{what}: "))
    assert path.is_file()
    return path.parent


def test_validation_gives_the_report_and_the_numbers(evaluate, run, drawn):
    code, out, err = evaluate(f"run_id={run.run_id}", "evaluation.report=true")
    assert code == 0, err
    folder = folder_of(out)
    page = (folder / "report.html").read_text()
    assert "slightly flattered" in page
    assert "upside down" in page
    known = json.loads((folder / "evaluation.json").read_text())
    table = predictions.read(folder / "predictions.csv")
    point = known["decision"]["threshold"]
    called = table["probability"] >= point
    assert known["at_operating_point"]["sensitivity"]["value"] == pytest.approx(called[table["label"] == 1].mean())
    assert known["openings"] == 0
    assert {path.stem for path in (folder / "figures").iterdir()} >= {"roc", "reliability", "coverage", "subgroups"}
    stored = run.store.client.get_run(out.split("run_id=")[1][:32])
    assert stored.data.tags["mlflow.parentRunId"] == run.run_id
    assert stored.data.metrics["val/auroc"] == pytest.approx(known["at_operating_point"]["auroc"]["value"])


def test_without_a_report_the_numbers_are_kept_and_named(evaluate, run):
    arguments = [f"run_id={run.run_id}", "evaluation.robustness_images=4"]
    code, out, err = evaluate(*arguments)
    assert code == 0, err
    assert "Report:" not in out
    folder = folder_of(out, what="Numbers")
    assert {path.name for path in folder.iterdir()} == {"evaluation.json", "predictions.csv"}
    known = json.loads((folder / "evaluation.json").read_text())
    assert known["images"] == len(predictions.read(folder / "predictions.csv"))
    assert {one["kind"] for one in known["robustness"]} >= {"as it is", "narrower"}


def test_the_ledger_is_written_before_anything_is_predicted(evaluate, monkeypatch, store_run):
    run = store_run(7)
    before = len(openings(run.store))

    def broken(*_, **__):
        assert len(openings(run.store)) == before + 1
        raise RuntimeError("no prediction today")

    monkeypatch.setattr("xray_pneumonia.inference.model.run_features", broken)
    code, _, err = evaluate(f"run_id={run.run_id}", "split=test")
    assert code == 1
    assert "no prediction today" in err
    assert len(openings(run.store)) == before + 1


def test_openings_are_counted_and_later_runs_are_marked(evaluate, run, store_run):
    evaluate(f"run_id={run.run_id}", "split=test")
    late = store_run(1)
    code, out, err = evaluate(
        f"run_id=[{run.run_id},{late.run_id}]", f"compare_to={run.run_id}", "split=test",
        "operating_point=sensitivity:0.8", "evaluation.report=true",
    )  # fmt: skip
    assert code == 0, err
    assert f"Run {late.run_id} was trained after a test had been opened" in " ".join(out.split())
    page = (folder_of(out) / "report.html").read_text()
    assert "sensitivity:0.8" in page
    assert "Compared with seed 0" in page
    assert "DeLong" in page
    assert re.search(r"have been opened <strong>(twice|\d+ times)</strong>, this one included", page)
    assert re.search(r'<td class="n">20\d\d-\d\d-\d\d \d\d:\d\d UTC</td>', page)


def test_a_prevalence_translates_probabilities_and_leaves_what_is_called(evaluate, run):
    known, tables = [], []
    for more in ([], ["prevalence=0.05"], ["prevalence=0.05", "cost=30"]):
        code, out, err = evaluate(f"run_id={run.run_id}", *more)
        assert code == 0, err
        folder = folder_of(out, what="Numbers")
        known.append(json.loads((folder / "evaluation.json").read_text()))
        tables.append(predictions.read(folder / "predictions.csv")["probability"])
    own, rare, costly = (one["decision"] for one in known)
    assert (own["threshold"], rare["calibration"]["prevalence"]) == (0.5, 0.05)
    shift = np.log(tables[1] / (1 - tables[1])) - np.log(tables[0] / (1 - tables[0]))
    assert shift.to_numpy() == pytest.approx(np.repeat(shift[0], len(shift)), abs=1e-5)
    for name in ("sensitivity", "specificity"):
        assert known[1]["at_operating_point"][name] == known[0]["at_operating_point"][name]
    assert costly["threshold"] == pytest.approx(1 / 31)


def test_an_ensemble_is_the_mean_of_calibrated_logits(evaluate, run, store_run):
    other = store_run(2)
    tables = []
    for chosen in (f"[{run.run_id},{other.run_id}]", run.run_id, other.run_id):
        code, out, err = evaluate(f"run_id={chosen}", "evaluation.report=true")
        assert code == 0, err
        tables.append(predictions.read(folder_of(out) / "predictions.csv"))
    both, first, second = (np.log(one["probability"] / (1 - one["probability"])) for one in tables)
    shift = (both - (first + second) / 2).to_numpy()  # each is shown where its own operating point lies at 0.5
    assert shift == pytest.approx(np.repeat(shift[0], len(shift)), abs=1e-4)


def test_an_external_folder_is_judged(evaluate, root, run, tmp_path):
    for name in CLASSES:
        shutil.copytree(root / "test" / name, tmp_path / "abroad" / name)
    arguments = [f"run_id={run.run_id}", "split=external", f"data.root={tmp_path / 'abroad'}"]
    code, out, err = evaluate(*arguments)
    assert code == 0, err
    assert re.search(r"external/auroc=[01]\.\d{6}$", out)
    code, out, err = evaluate(*arguments, "data.patient='.*(jpe?g|png)$'")
    assert code == 0, err
    assert out.endswith("external/auroc=not shown: 1 patient\n")
    (tmp_path / "abroad" / "NORMAL").rename(tmp_path / "abroad" / "healthy")
    code, _, err = evaluate(*arguments)
    assert code == 2
    assert "'PNEUMONIA', 'healthy'" in err
    shutil.rmtree(tmp_path / "abroad" / "healthy")
    (tmp_path / "abroad" / "NORMAL").mkdir()
    code, _, err = evaluate(*arguments)
    assert code == 2


@pytest.mark.parametrize("name", ["final", "final_ensemble"])
def test_a_shipped_model_opens_a_test_split_that_stands_alone(evaluate, root, home, run, tmp_path, name):
    shutil.copytree(root / "test", tmp_path / "sealed" / "test")
    before = len(openings(run.store))
    arguments = [f"model={name}", "split=test", f"data.root={tmp_path / 'sealed'}", "evaluation.report=true"]
    code, out, err = evaluate(*arguments, "compare_to=final_seed2")
    assert code == 0, err
    assert len(openings(run.store)) == before + 1
    folder = folder_of(out)
    known = json.loads((folder / "evaluation.json").read_text())
    model = find_and_load(name, tracking=run.store, home=home)
    assert known["decision"]["threshold"] == model.card.operating_point
    table = predictions.read(folder / "predictions.csv")
    films = np.stack([decode(read_bytes(tmp_path / "sealed" / film), 128).pixels for film in table["id"]])
    assert table["probability"].to_numpy() == pytest.approx(model.probabilities(films), abs=1e-4)
    assert "cannot tell what was opened before" in (folder / "report.html").read_text()


def test_a_test_split_is_opened_whatever_ails_the_other_splits(evaluate, root, tmp_path):
    shutil.copytree(root, tmp_path / "films")
    train, test = tmp_path / "films" / "train", tmp_path / "films" / "test"
    leaked, other = sorted((train / "NORMAL").iterdir())[:2]
    shutil.copyfile(leaked, test / "NORMAL" / "leaked.jpeg")
    other.write_bytes(b"no film")
    for film in (train / "PNEUMONIA").iterdir():
        film.unlink()
    arguments = ["model=final", "split=test", f"data.root={tmp_path / 'films'}", "evaluation.report=true"]
    code, out, err = evaluate(*arguments)
    assert code == 0, err
    found = "Of these images, 1 show a film that is in another split of the folder too. The figures flatter if"
    assert found in " ".join(out.split())
    page = (folder_of(out) / "report.html").read_text()
    assert found in page
    assert "1 by bytes or looks in other splits of the folder" in page
    assert "unknown_patients" in err
    assert f"{leaked.name} = " in err or f"= train/NORMAL/{leaked.name}" in err


def test_a_broken_film_of_the_split_is_refused_and_its_cure_works(evaluate, root, tmp_path):
    shutil.copytree(root / "test", tmp_path / "films" / "test")
    films = sorted((tmp_path / "films" / "test" / "NORMAL").iterdir())
    films[0].write_bytes(b"no film")
    for split, place in (("test", tmp_path / "films"), ("external", tmp_path / "films" / "test")):
        arguments = ["model=final", f"split={split}", f"data.root={place}"]
        code, _, err = evaluate(*arguments)
        assert code == 2
        cure = "data.broken=quarantine"
        assert cure in err
        code, out, err = evaluate(*arguments, cure)
        assert code == 0, err
        assert films[0].name in err
        known = json.loads((folder_of(out, what="Numbers") / "evaluation.json").read_text())
        assert known["images"] == sum(1 for _ in (tmp_path / "films" / "test").glob("*/*")) - 1


def test_the_ledger_knows_images_again_by_another_name(evaluate, root, tmp_path):
    shutil.copytree(root / "test", tmp_path / "films" / "test")
    for number, film in enumerate(sorted((tmp_path / "films" / "test").glob("*/*"))):
        film.write_bytes(film.read_bytes() + b"\0")  # images that no other test opens
        film.rename(film.with_stem(f"film{number}"))
    arguments = ["model=final", f"data.root={tmp_path / 'films'}", "split=test"]
    code, out, _ = evaluate(*arguments)
    assert (code, "opened once, just now" in out) == (0, True)
    (tmp_path / "films" / "test").rename(tmp_path / "films" / "abroad")
    arguments = ["model=final", f"data.root={tmp_path / 'films' / 'abroad'}", "split=external"]
    code, out, err = evaluate(*arguments)
    assert (code, "opened twice, this one included" in out) == (0, True), err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run_id=abc"], "32 hex digits"),
        ([f"run_id={'a' * 32}"], "no such run"),
        (["run_id=RUN", "split=external"], "data.root=DIR"),
        (["run_id=RUN", "operating_point=best"], "no such policy"),
        (["run_id=[RUN,RUN]"], "name each run once"),
        (["run_id=[]"], "name each run once"),
        (["run_id=RUN", "split=train"], "split='train'"),
        (["run_id=RUN", "data.root=/nowhere", "split=test"], "/nowhere"),
        ([], "name one of them"),
        (["run_id=RUN", "model=final"], "name one of them"),
        (["model=finale"], "model=finale: no such model; those that came with this package are final,"),
        (["run_id=RUN", "compare_to=finale"], "compare_to=finale: no such model; those that came"),
        (["run_id=RUN", "data.broken=maybe"], "data.broken='maybe'"),
        (["run_id=RUN", "split=external", "data.root=2024_01"], "2024_01: no such folder"),
        (["run_id=RUN", "evaluation.subgroups=[sex]"], "'sex': should be 'subtype'"),
        (["model=final", "operating_point=youden"], "stands in a folder without them"),
        (["run_id=RUN", "prevalence=1.5"], "prevalence=1.5: should be less than 1"),
        (["run_id=RUN", "cost=5"], "needs prevalence=P"),
        (["run_id=RUN", "operating_point=youden", "evaluation.out_of_fold=[RUN,RUN]"], "are in two of 2 tables"),
        (["model=final", "data.root=ROOT"], "not the records that run"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(evaluate, root, run, arguments, says):
    asked = [each.replace("RUN", run.run_id).replace("ROOT", str(root)) for each in arguments]
    code, _, err = evaluate(*asked)
    assert code == 2
    assert says in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", [("evaluate", "run_id=RUN"), ("train", "resume=RUN")])
def test_a_run_that_is_elsewhere_makes_no_store_here(xray, tmp_path, command):
    verb, key = command
    refused = xray(verb, key.replace("RUN", "a" * 32), f"home={tmp_path}")
    assert (refused.code, "there is no such database; home=" in refused.err) == (2, True)
    assert not (tmp_path / "mlflow.db").exists()


def test_other_records_than_those_of_the_run_are_refused(evaluate, root, run, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    next((tmp_path / "copy" / "train" / "NORMAL").iterdir()).unlink()
    code, _, err = evaluate(f"run_id={run.run_id}", f"data.root={tmp_path / 'copy'}")
    assert code == 2
    assert "fingerprint" in err


def test_altered_weights_are_found_out(evaluate, home, store_run):
    from safetensors.torch import load_file, save_file

    altered = store_run(3)
    model_id = altered.store.client.get_run(altered.run_id).data.tags["model_id"]
    file = next((home / "artifacts").rglob(f"**/{model_id}/**/model.safetensors"))
    weights = load_file(file)
    save_file({name: tensor * 3 for name, tensor in weights.items()}, file)
    code, _, err = evaluate(f"run_id={altered.run_id}")
    assert (code, "is not the file that model.json was written with" in err) == (2, True)
    card = json.loads((file.parent / "model.json").read_text())
    (file.parent / "model.json").write_text(json.dumps(card | {"weights_sha256": file_sha256(file)}))
    code, _, err = evaluate(f"run_id={altered.run_id}")
    assert (code, "does not give the predictions of its run" in err) == (2, True)
    save_file({name: tensor * torch.nan for name, tensor in weights.items()}, file)
    (file.parent / "model.json").write_text(json.dumps(card | {"weights_sha256": ""}))
    code, _, err = evaluate(f"run_id={altered.run_id}")
    assert (code, "no finite number" in err) == (2, True)


def test_a_model_of_another_run_is_refused(evaluate, store_run):
    wrong = store_run(4, changes={"run_id": "f" * 32})
    code, _, err = evaluate(f"run_id={wrong.run_id}")
    assert (code, "that of run ffff" in err) == (2, True)


def test_a_model_without_calibration_gets_one_from_its_validation(evaluate, store_run):
    old = store_run(5, fixed=True)
    code, _, err = evaluate(f"run_id={old.run_id}")
    assert code == 0, err
