"""Read, write and compare what a training leaves: config, metrics of each epoch, weights, circumstances."""

import csv
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.metrics import EPOCH_METRICS, monitor_mode
from xray_pneumonia.inference.bundle import read_bundle, require_plain
from xray_pneumonia.stored_config import check_net, load_stored
from xray_pneumonia.tracking.run import Run
from xray_pneumonia.tracking.stored_runs import StoredRun
from xray_pneumonia.workflows.own_code import load_config

CONFIG, HISTORY, ENVIRONMENT = "config.yaml", "history.csv", "environment.json"  # in the folder of the weights
STAGES = ("train", "val")
MAX_BYTES = 2**23
CODE = ("source_sha256", "commit")  # by which code is compared: the first that was recorded

History = Mapping[str, Mapping[int, float]]  # metric -> epoch, counted from 1 -> value


@dataclass(frozen=True)
class TrainingRecord:
    """A training as its run or its folder holds it."""

    name: str  # `run_id=...` or the folder
    run: StoredRun | None  # None where it is a folder
    config: DictConfig  # that it ran with, checked as far as stored ones are
    config_sha256: str  # of the config's bytes
    fingerprint: str  # of the data's records
    history: History  # of its metrics
    weights: dict[str, Tensor]  # of the kept epoch
    circumstances: dict[str, str]  # machine, versions and code, one value for each


@dataclass(frozen=True)
class Departure:
    """The first value that differs; None where one side has none."""

    epoch: int
    metric: str
    stored: float | None
    found: float | None


@dataclass(frozen=True)
class WeightDifference:
    """How many tensors there are, how many differ in any bit, and by how much at most."""

    tensors: int
    differing: int
    largest: float


def read_record(source: StoredRun | Path) -> TrainingRecord:
    """Read a training from a run in MLflow or from the folder of a bundle, which needs no store.

    Raises:
        InputError: a part of it is missing or was altered.
    """
    if isinstance(source, StoredRun):
        name, origin, folder, run = f"run_id={source.run_id}", f"run_id={source.run_id}", source.bundle(), source
        text, sha256 = source.config, source.tags["config_sha256"]
        environment = _environment(source.artifact(ENVIRONMENT))
        names = [metric for metric in sorted(source.metrics) if metric.split("/")[0] in STAGES]
        history: History = {metric: dict(source.history(metric)) for metric in names}
    else:
        name, origin, folder, run = f"{source}", f"{source / CONFIG}", source, None
        provenance = read_provenance(source)
        text, environment = provenance.config, provenance.environment
        sha256 = environment.get("config_sha256", provenance.config_sha256)
        history = read_history(source / HISTORY) if (source / HISTORY).is_file() else {}
    if run is not None and run.tags.get("verb") == "adapt":
        raise InputError(f"{name}: was adapted, not trained; run its `xray adapt` again (its config is {CONFIG})")
    if not history:
        what = "metrics of its epochs" if run else HISTORY
        raise InputError(f"{name if run else f'model={name}'}: holds no {what}, so nothing could be compared with it")
    config = load_config(run, origin=origin) if run else load_stored(text, origin=origin, sha256=sha256)
    card, weights = read_bundle(folder)
    check_net(card.net, origin=str(folder / "model.json"))
    if run is not None and card.records_fingerprint != run.tags.get("records_fingerprint", ""):
        raise InputError(f"{folder / 'model.json'}: was trained on other records than its run; it was altered")
    return TrainingRecord(
        name, run, config, sha256, card.records_fingerprint, history, weights, flatten_circumstances(environment)
    )


def leave_evidence(run: Run, folder: Path) -> None:
    """Write to a bundle's folder what `xray reproduce` needs where there is no MLflow store."""
    config = run.path(CONFIG).read_bytes()
    (folder / CONFIG).write_bytes(config)
    environment = json.loads(run.path(ENVIRONMENT).read_text(encoding="utf-8"))
    environment["config_sha256"] = hashlib.sha256(config).hexdigest()
    (folder / ENVIRONMENT).write_text(json.dumps(environment, indent=2), encoding="utf-8")
    metrics = [f"{stage}/{name}" for stage in STAGES for name in ("loss", *EPOCH_METRICS)]
    with (folder / HISTORY).open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["metric", "epoch", "value"])
        for name, pairs in run.metric_history(metrics).items():
            rows.writerows([name, epoch, repr(float(value))] for epoch, value in pairs)  # every bit survives


def read_history(path: Path) -> History:
    """Read the metrics of each epoch from the table of a bundle; another table is an InputError."""
    history: defaultdict[str, dict[int, float]] = defaultdict(dict)
    try:
        for row in csv.DictReader(_text(path).splitlines()):
            history[row["metric"]][int(row["epoch"])] = float(row["value"])
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: expected the columns metric, epoch and value: {error}") from error
    return dict(history)


@dataclass(frozen=True)
class Provenance:
    """The files of a bundle that tell of its training: the config as text, and the environment."""

    config: str
    config_sha256: str
    environment: dict[str, Any]


def read_provenance(folder: Path) -> Provenance:
    """Read the config and the environment of a bundle's training; a missing or damaged file is an InputError."""
    if not (folder / CONFIG).is_file():
        raise InputError(f"model={folder}: holds no {CONFIG}, so how it was trained is not known")
    config = _text(folder / CONFIG)
    environment = _environment(folder / ENVIRONMENT) if (folder / ENVIRONMENT).exists() else {}
    return Provenance(config, hashlib.sha256(config.encode()).hexdigest(), environment)


def _environment(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON: {error}") from error
    if not isinstance(known, dict):
        raise InputError(f"{path}: expected a mapping")
    return known


def _text(path: Path) -> str:
    """Read a file that somebody else may have written; what is not there, too large or no text is an InputError."""
    try:
        return require_plain(path, most=MAX_BYTES).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def flatten_circumstances(environment: Mapping[str, Any]) -> dict[str, str]:
    """Flatten an environment to what may change bits: machine, versions, code, one value for each."""
    parts = {part: environment[part] for part in ("machine", "versions", "code") if part in environment}
    flat = {
        f"{part}.{key}": str(value)[:200]
        for part, values in parts.items()
        if isinstance(values, dict)
        for key, value in values.items()
    }
    return {key: value for key, value in flat.items() if value and key not in {"machine.platform", "code.dirty"}}


def what_differs(then: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """List the circumstances that differ, with both values; what was not recorded then counts as different.

    Code is compared by the hash of its source, and by its commit only where that was not recorded.
    """
    if not any(key.startswith("machine.") for key in then):
        return {"machine": ("not recorded", now.get("machine.cpu", "this one"))}
    keys = [key for key in then if not key.startswith("code.") and key != "versions.xray-pneumonia"]
    code = next((f"code.{name}" for name in CODE if f"code.{name}" in then), "code.source_sha256")
    return {
        key: (then.get(key, "not recorded"), now.get(key, "none"))
        for key in [*keys, code]
        if then.get(key) != now.get(key)
    }


def compare_histories(stored: History, found: History) -> list[Departure]:
    """List what departs, the earliest epoch first, training before validation and losses before the rest.

    Metrics are logged in single precision, so they are compared in it.
    """
    names = sorted({*stored, *found}, key=lambda name: (not name.startswith("train/"), "loss" not in name, name))
    epochs = sorted({epoch for side in (stored, found) for values in side.values() for epoch in values})
    pairs = [
        Departure(epoch, name, stored.get(name, {}).get(epoch), found.get(name, {}).get(epoch))
        for epoch in epochs
        for name in names
    ]
    return [pair for pair in pairs if not _same(pair.stored, pair.found)]


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.float32(one).tobytes() == np.float32(other).tobytes()


def compare_weights(stored: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> WeightDifference:
    """Compare tensors bit by bit; one that is missing or of another shape or type differs by infinity."""
    gaps = {name: _gap(stored.get(name), found.get(name)) for name in {*stored, *found}}
    differing = [gap for gap in gaps.values() if gap is not None]
    return WeightDifference(len(gaps), len(differing), max(differing, default=0.0))


def _gap(one: Tensor | None, other: Tensor | None) -> float | None:
    """Measure the largest difference; None where every bit is the same."""
    if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
        return math.inf
    one, other = (side.detach().cpu().contiguous().reshape(-1) for side in (one, other))
    if torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
        return None
    gap = float((one.double() - other.double()).abs().max())
    return math.inf if math.isnan(gap) else gap


def kept_metrics(history: History, names: Mapping[str, float], *, monitor: str | None) -> dict[str, float]:
    """Read metrics in the epoch in which the monitored one was best, the earliest of equals; None means the last."""
    if monitor is None:
        kept = max((epoch for name in names for epoch in history.get(name, {})), default=-1)
    else:
        sign, monitored = -1 if monitor_mode(monitor) == "max" else 1, history.get(monitor, {})
        kept = min(sorted(monitored), key=lambda epoch: sign * monitored[epoch], default=-1)
    return {name: history[name][kept] for name in names if kept in history.get(name, {})}
