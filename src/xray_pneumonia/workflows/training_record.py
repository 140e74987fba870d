"""What a training leaves behind to be held against another: config, metrics of each epoch, weights, circumstances."""

import csv
import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.agreement import History
from xray_pneumonia.evaluation.metrics import EPOCH_METRICS
from xray_pneumonia.inference.bundle import read_bundle, require_plain
from xray_pneumonia.stored_config import check_net, load_stored
from xray_pneumonia.tracking.run import Run
from xray_pneumonia.tracking.stored_runs import StoredRun

CONFIG, HISTORY, ENVIRONMENT = "config.yaml", "history.csv", "environment.json"  # beside the weights
STAGES = ("train", "val")
MAX_BYTES = 2**23
OF_NET = "net."  # in the classifier
CODE = ("source_sha256", "commit")


@dataclass(frozen=True)
class Evidence:
    """A training as it was stored.

    Args:
        name: `run_id=...` or the folder.
        run: in MLflow, where it came from there.
        config: that it ran with, checked as far as stored ones are.
        config_sha256: of its bytes.
        fingerprint: of its records.
        history: of its metrics.
        weights: of its best epoch.
        circumstances: machine, versions and code, one value for each.
    """

    name: str
    run: StoredRun | None
    config: DictConfig
    config_sha256: str
    fingerprint: str
    history: History
    weights: dict[str, Tensor]
    circumstances: dict[str, str]


def leave_evidence(run: Run, folder: Path) -> None:
    """Put beside a bundle's weights what `xray reproduce` needs where there is no MLflow store."""
    config = run.path(CONFIG).read_bytes()
    (folder / CONFIG).write_bytes(config)
    known = json.loads(run.path(ENVIRONMENT).read_text(encoding="utf-8"))
    known["config_sha256"] = hashlib.sha256(config).hexdigest()
    (folder / ENVIRONMENT).write_text(json.dumps(known, indent=2), encoding="utf-8")
    metrics = [f"{stage}/{name}" for stage in STAGES for name in ("loss", *EPOCH_METRICS)]
    write_history(folder / HISTORY, {name: dict(pairs) for name, pairs in run.metric_history(metrics).items()})


def write_history(path: Path, history: History) -> None:
    """Write one row for each metric and epoch; every bit of a value survives."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["metric", "epoch", "value"])
        rows.writerows(
            [name, epoch, repr(float(value))] for name, known in history.items() for epoch, value in known.items()
        )


def read_history(path: Path) -> History:
    """Read what `write_history` wrote.

    Raises:
        InputError: it is no such table.
    """
    history: defaultdict[str, dict[int, float]] = defaultdict(dict)
    try:
        for row in csv.DictReader(_text(path).splitlines()):
            history[row["metric"]][int(row["epoch"])] = float(row["value"])
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: expected the columns metric, epoch and value: {error}") from error
    if not history:
        raise InputError(f"{path}: holds no metrics")
    return dict(history)


def of_run(run: StoredRun) -> Evidence:
    """Collect the evidence of a run in MLflow.

    Raises:
        InputError: a part of it is missing or was altered.
    """
    origin, sha256 = f"run_id={run.run_id}", run.tags["config_sha256"]
    names = [name for name in run.metrics if name.split("/")[0] in STAGES]
    history = {name: dict(run.history(name)) for name in sorted(names)}
    if not history:
        raise InputError(f"{origin}: holds no metrics of its epochs; nothing could be compared with them")
    config = load_stored(run.config, origin=origin, sha256=sha256)
    known = _environment(run.artifact(ENVIRONMENT))
    fingerprint = run.tags.get("records_fingerprint", "")
    return Evidence(
        origin, run, config, sha256, fingerprint, history, _weights(run.bundle(), fingerprint), _flat(known)
    )


def of_folder(folder: Path) -> Evidence:
    """Collect the evidence of a bundle that carries its config and metrics; no MLflow.

    Raises:
        InputError: a file is missing or was altered.
    """
    papers = read_papers(folder)
    if not (folder / HISTORY).is_file():
        raise InputError(f"model={folder}: holds no {HISTORY}, so nothing could be compared with it")
    known = papers.environment
    config = load_stored(papers.config, origin=f"{folder / CONFIG}", sha256=known.get("config_sha256"))
    fingerprint = read_bundle(folder)[0].records_fingerprint
    weights, history = _weights(folder, fingerprint), read_history(folder / HISTORY)
    return Evidence(str(folder), None, config, papers.config_sha256, fingerprint, history, weights, _flat(known))


@dataclass(frozen=True)
class Papers:
    """What lies beside a bundle's weights and tells of its training: its config as text, and its environment."""

    config: str
    config_sha256: str
    environment: dict[str, Any]


def read_papers(folder: Path) -> Papers:
    """Read the papers of a bundle.

    Raises:
        InputError: there is no config, or a file is damaged.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"model={folder}: holds no {CONFIG}, so how it was trained is not known")
    config = _text(folder / CONFIG)
    known = _environment(folder / ENVIRONMENT) if (folder / ENVIRONMENT).exists() else {}
    return Papers(config, hashlib.sha256(config.encode()).hexdigest(), known)


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Read the weights of the net from a checkpoint of the classifier around it, under the net's own names."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    return {name.removeprefix(OF_NET): tensor for name, tensor in state.items() if name.startswith(OF_NET)}


def _weights(folder: Path, fingerprint: str) -> dict[str, Tensor]:
    card, weights = read_bundle(folder)
    check_net(card.net, origin=str(folder / "model.json"))
    if card.records_fingerprint != fingerprint:
        raise InputError(f"{folder / 'model.json'}: was trained on other records than its run; it was altered")
    return weights


def _environment(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON: {error}") from error
    if not isinstance(known, dict):
        raise InputError(f"{path}: expected a mapping")
    return known


def _flat(known: dict[str, Any]) -> dict[str, str]:
    """Name each circumstance once: machine, versions, code."""
    rooms = {room: known[room] for room in ("machine", "versions", "code") if isinstance(known.get(room), dict)}
    flat = {f"{room}.{key}": str(value)[:200] for room, values in rooms.items() for key, value in values.items()}
    return {key: value for key, value in flat.items() if value and key not in {"machine.platform", "code.dirty"}}


def _text(path: Path) -> str:
    """Read a file that somebody else may have written.

    Raises:
        InputError: it is not there, too large, or no text.
    """
    try:
        return require_plain(path, most=MAX_BYTES).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def circumstances_now(environment: str) -> dict[str, str]:
    """Name the circumstances of this process, from its provenance."""
    return _flat(json.loads(environment))


def what_differs(then: dict[str, str], now: dict[str, str]) -> dict[str, tuple[str, str]]:
    """List what differs and may change bits; what was not recorded then is not known to be the same.

    Code is compared by the hash of its source, and by its commit only where that was not recorded.
    """
    if not any(key.startswith("machine.") for key in then):
        return {"machine": ("not recorded", now.get("machine.cpu", "this one"))}
    keys = [key for key in then if not key.startswith("code.") and key != "versions.xray-pneumonia"]
    known = next((f"code.{name}" for name in CODE if f"code.{name}" in then), "code.source_sha256")
    return {
        key: (then.get(key, "not recorded"), now.get(key, "none"))
        for key in [*keys, known]
        if then.get(key) != now.get(key)
    }
