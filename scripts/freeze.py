"""Copies trained models into the package, where `xray predict` finds them: `final`, and the members of its ensemble.

python scripts/freeze.py HOME [operating_point=POLICY] final=RUN_ID final_seed1=RUN_ID ... final_seed5=RUN_ID
python scripts/freeze.py HOME data.root=DIR    makes cards and gates of all shipped models anew; their weights stay

Each becomes a folder of src/xray_pneumonia/weights with weights, card, gate, and what reproducing it needs; places
of this machine are left out of its config. With POLICY the operating point is chosen anew on the runs' validation
predictions: their config then says so, and `judged` in environment.json by which code. The models called NAME_seed1,
NAME_seed2 ... become the ensemble NAME_ensemble, which names them and holds no weights; its gate comes from the second
command. With data.root calibration, operating point, margin and gate of what is shipped are fitted anew on its splits,
by the policy of its config, and `judged` among the versions of its card names the code. Every change of these files
stays in the history for ever.
"""

import hashlib
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
from hydra import compose, initialize_config_module

from xray_pneumonia.config import build, plain
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.evaluation.assessment import Decision, decide
from xray_pneumonia.evaluation.calibration import Calibration
from xray_pneumonia.evaluation.input_gate import FeatureGate, join_gates
from xray_pneumonia.evaluation.metrics import table_metrics
from xray_pneumonia.evaluation.quality import InputCheck
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.inference.bundle import CARD, GATE, WEIGHTS, Card, read_bundle
from xray_pneumonia.inference.ensemble import save_ensemble
from xray_pneumonia.inference.model import TrainedModel
from xray_pneumonia.stored_config import load_stored
from xray_pneumonia.tracking.provenance import collect
from xray_pneumonia.tracking.store import Store, TrackingSettings, open_database, open_store
from xray_pneumonia.tracking.stored_runs import StoredRun, read_run
from xray_pneumonia.whole_files import file_sha256
from xray_pneumonia.workflows.evaluation_data import HeldOut, open_split
from xray_pneumonia.workflows.find_model import STORED, find_evaluated, load_runs, shipped_models
from xray_pneumonia.workflows.training_record import CONFIG, ENVIRONMENT
from xray_pneumonia.workflows.training_run import COMPUTING
from xray_pneumonia.workflows.validation import fit_gate, settle_gate

SHIPPED = Path(__file__).parents[1] / "src" / "xray_pneumonia" / "weights"
CHOSEN_BY = ("calibration", "operating_point", "max_error")  # of the config group `evaluation`
PLACES = {"home": "mlruns", "  root": "data/chest_xray", "  cache_dir": "mlruns/cache", "  experiment_name": "xray"}


def main() -> None:
    """Freeze what the command line names."""
    home, *named = sys.argv[1:]
    settings = TrackingSettings(uri=None, experiment_name="xray", run_name=None, system_metrics=False, required=True)
    runs = dict(pair.split("=") for pair in named)
    policy = runs.pop("operating_point", STORED)
    code = json.loads(collect(COMPUTING).environment)["code"]
    if root := runs.pop("data.root", None):
        for name in sorted(shipped_models(), key=lambda one: one.endswith("_ensemble")):  # its members first
            judge_anew(name, root, home=home, code=code)
        return
    store = open_database(settings, home=Path(home).resolve())
    for name, run_id in runs.items():
        freeze(store, run_id, SHIPPED / name, policy=policy, code=code)
    members = sorted(name for name in runs if re.search(r"_seed\d+$", name))
    if len(members) > 1:
        folder = SHIPPED / f"{members[0].rpartition('_')[0]}_ensemble"
        join(store, {name: runs[name] for name in members}, folder, policy=policy)


def freeze(store: Store, run_id: str, folder: Path, *, policy: str, code: dict[str, object]) -> None:
    """Copy the bundle of a run, without the places of the machine that trained it."""
    run = read_run(store, run_id)
    bundle = run.bundle()
    card = read_bundle(bundle)[0]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in bundle.iterdir():
        shutil.copyfile(path, folder / path.name)
    if policy != STORED:
        card = load_runs(store, [run_id], judged([run]), operating_point=policy).model.card
    card = replace(card, evidence=evidence(run, card), weights_sha256=file_sha256(folder / WEIGHTS))
    (folder / CARD).write_text(json.dumps(card.values(), indent=2) + "\n", encoding="utf-8")
    config = (folder / CONFIG).read_text(encoding="utf-8")
    for key, value in {**PLACES, "  run_name": re.sub(r"_seed\d+$", "", folder.name)}.items():
        config = re.sub(rf"^{key}: .*$", f"{key}: {value}", config, flags=re.MULTILINE)
    if policy != STORED:
        config = re.sub(r"^  operating_point: .*$", f"  operating_point: {policy}", config, flags=re.MULTILINE)
    (folder / CONFIG).write_text(config, encoding="utf-8")
    known = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    known["machine"].pop("platform", None)
    known["config_sha256"] = hashlib.sha256(config.encode()).hexdigest()
    if policy != STORED:
        known["judged"] = {"operating_point": policy, **code}
    (folder / ENVIRONMENT).write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def judge_anew(name: str, root: str, *, home: str, code: dict[str, object]) -> None:
    """Fit calibration, operating point and margin of a shipped model anew, on the validation split of its training."""
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        cfg = compose("evaluate", [f"home={Path(home).resolve()}", f"data.root={root}"])
    cfg.model = name  # an override would name the config group
    evaluated, _ = find_evaluated(open_store(build(cfg.tracking), home=Path(cfg.home)), cfg, build(cfg.evaluation))
    model, run, settings = evaluated.model, evaluated.runs[0], judged(evaluated.runs)
    held_out = open_split(
        run,
        "val",
        folder=plain(cfg.data),  # type: ignore[arg-type]
        home=Path(cfg.home),
        image_size=model.card.image_size,
        validation_ids=None,
    )
    logits = model.uncalibrated_logits(held_out.images)
    table = predictions.tabulate(held_out.records, held_out.records.index.to_numpy(), logits)
    decision = decide(table, settings, fitted=Calibration(prevalence=0.5) if model.members else None)
    found = table_metrics(decision.calibration.apply(table), threshold=decision.threshold)
    known = model.card.evidence
    card = replace(
        model.card.with_decision(decision),
        versions=model.card.versions | {"judged": str(code["commit"])},
        evidence=known | {key: found[key[4:]] for key in known if key[4:] in found},
    )
    folder = SHIPPED / name
    write_gate(model, held_out, table, decision, folder / GATE)
    if model.members:
        save_ensemble(folder, [member.name for member in model.members], card)
    else:
        (folder / CARD).write_text(json.dumps(card.values(), indent=2) + "\n", encoding="utf-8")
    print(name, {key: round(value, 4) for key, value in card.evidence.items()}, card.prevalence, card.promise)


def write_gate(model: TrainedModel, held_out: HeldOut, table: pd.DataFrame, decision: Decision, path: Path) -> None:
    """Fit the input gate of a model anew; an ensemble's judges the mean of its members' distances."""
    if model.members:
        gates = [member.gate for member in model.members if isinstance(member.gate, FeatureGate)]
        check = InputCheck(join_gates(gates), lambda images: model.measure(images)[1])
        distances = check.distances(held_out.images)
    else:
        check, distances = fit_gate(model.require_net(), held_out)
    films = table.join(held_out.records[["width", "height"]])
    settled, films = settle_gate(check, distances, held_out, films, decision)
    settled.gate.write(path)
    print(path.parent.name, "stops", f"{(films['gate_score'] > 1).mean():.4f}", "limits", settled.gate.limits.round(3))


def evidence(run: StoredRun, card: Card) -> dict[str, float]:
    """Count what a model learned from and was judged by."""
    table = Calibration(card.temperature, card.bias, card.prevalence).apply(
        pd.read_csv(run.artifact("predictions/val.csv"))
    )
    at_point = table_metrics(table, threshold=card.operating_point)
    sizes = {f"{split}/{what}": run.metrics[f"data/{split}_{what}"] for split in ("train", "val") for what in WHAT}
    return sizes | {f"val/{name}": at_point[name] for name in ("auroc", "sensitivity", "specificity")}


WHAT = ("images", "patients")


def join(store: Store, runs: dict[str, str], folder: Path, *, policy: str) -> None:
    """Choose operating point and band for the members' mean, on the validation images that they share."""
    settings = judged([read_run(store, run_id) for run_id in runs.values()])
    evaluated = load_runs(store, list(runs.values()), settings, operating_point=policy)
    if evaluated.validation is None:
        raise TypeError("the models of runs hold their validation predictions")
    model = evaluated.model
    table = model.calibration.apply(evaluated.validation)
    found = table_metrics(table, threshold=model.card.operating_point)
    own = evidence(evaluated.runs[0], model.members[0].card)
    card = replace(model.card, evidence=own | {key: found[key.removeprefix("val/")] for key in own if key[4:] in found})
    shutil.rmtree(folder, ignore_errors=True)  # its gate is of other members
    folder.mkdir()
    save_ensemble(folder, list(runs), card)
    print(folder.name, {key: round(value, 4) for key, value in found.items()})


def judged(members: list[StoredRun]) -> EvaluationSettings:
    """Read from the members' own configs how they were judged, as what they answer together will be.

    Raises:
        InputError: one was judged in another way than the first.
    """
    nodes = [plain(load_stored(run.config, origin=f"run_id={run.run_id}")["evaluation"]) for run in members]
    for run, node in zip(members, nodes, strict=True):
        if other := [key for key in CHOSEN_BY if node[key] != nodes[0][key]]:
            differs = ", ".join(f"evaluation.{key}={node[key]}, {nodes[0][key]} in the first" for key in other)
            raise InputError(f"run_id={run.run_id}: {differs}; train the members of an ensemble with one config")
    return build(nodes[0])  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
