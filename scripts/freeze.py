"""Copies trained models into the package, where `xray predict` finds them: `final`, and the members of its ensemble.

python scripts/freeze.py HOME [operating_point=POLICY] final=RUN_ID final_seed1=RUN_ID ... final_seed5=RUN_ID

Each becomes a folder of src/xray_pneumonia/weights with weights, card, gate, and what reproducing it needs; places
of this machine are left out of its config. With POLICY the operating point is chosen anew on the runs' validation
predictions: their config then says so, and `judged` in environment.json by which code. The models called NAME_seed1,
NAME_seed2 ... become the ensemble NAME_ensemble, which names them and holds no weights. Every change of these files
stays in the history for ever.
"""

import hashlib
import json
import re
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd

from xray_pneumonia.config import build, plain
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.metrics import table_metrics
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.inference.bundle import CARD, WEIGHTS, Card, file_sha256, read_bundle
from xray_pneumonia.inference.ensemble import save_ensemble
from xray_pneumonia.stored_config import load_stored
from xray_pneumonia.tracking.provenance import collect
from xray_pneumonia.tracking.store import Store, TrackingSettings, open_database
from xray_pneumonia.tracking.stored_runs import StoredRun, read_run
from xray_pneumonia.workflows.find_model import STORED, load_runs
from xray_pneumonia.workflows.training_record import CONFIG, ENVIRONMENT
from xray_pneumonia.workflows.training_run import COMPUTING

SHIPPED = Path(__file__).parents[1] / "src" / "xray_pneumonia" / "weights"
CHOSEN_BY = ("calibration", "operating_point", "abstention_error")  # of the config group `evaluation`
PLACES = {"home": "mlruns", "  root": "data/chest_xray", "  cache_dir": "mlruns/cache"}


def main() -> None:
    """Freeze what the command line names."""
    home, *named = sys.argv[1:]
    settings = TrackingSettings(uri=None, experiment_name="xray", run_name=None, system_metrics=False, required=True)
    store = open_database(settings, home=Path(home).resolve())
    runs = dict(pair.split("=") for pair in named)
    policy = runs.pop("operating_point", STORED)
    code = json.loads(collect(COMPUTING).environment)["code"]
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
    (folder / CARD).write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")
    config = (folder / CONFIG).read_text(encoding="utf-8")
    for key, value in PLACES.items():
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


def evidence(run: StoredRun, card: Card) -> dict[str, float]:
    """Count what a model learned from and was judged by."""
    table = pd.read_csv(run.artifact("predictions/val.csv"))
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
