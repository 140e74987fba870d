"""`xray reproduce`: train a stored model again from its own config and compare every metric and weight."""

import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback

from xray_pneumonia.config import Node, build, check
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.data.records import fingerprint
from xray_pneumonia.errors import InputError, NotReproduced
from xray_pneumonia.terminal import console, make_table
from xray_pneumonia.tracking.provenance import collect
from xray_pneumonia.tracking.run import Run
from xray_pneumonia.tracking.store import Store, TrackingSettings, open_store
from xray_pneumonia.training.checkpoints import BEST
from xray_pneumonia.types import Positive, Text
from xray_pneumonia.workflows.find_model import find_named
from xray_pneumonia.workflows.train import TrainConfig
from xray_pneumonia.workflows.training import train
from xray_pneumonia.workflows.training_record import (
    Departure,
    History,
    TrainingRecord,
    WeightDifference,
    compare_histories,
    compare_weights,
    flatten_circumstances,
    kept_metrics,
    read_record,
    what_differs,
)
from xray_pneumonia.workflows.training_run import COMPUTING

Level = Literal["bit-identical", "within the band", "different"]
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """The top-level keys of reproduce.yaml."""

    home: Text
    extensions: dict[str, str]
    run_id: Text | None
    model: Text | None
    data: Mapping[str, Text | None]
    band: dict[str, Positive]
    tracking: Node


@dataclass(frozen=True)
class Comparison:
    """A training compared with its reproduction."""

    level: Level  # within the band: which counts only where circumstances differ
    circumstances: Mapping[str, tuple[str, str]]  # what differs between then and now, with both values
    epochs: int  # how many were compared, as `metrics`
    metrics: int
    departures: int  # how many of these values differ
    first: Departure | None
    weights: WeightDifference  # of the kept epoch
    stored: Mapping[str, float]  # the band's metrics in the kept epoch, then
    found: Mapping[str, float]  # the same, now
    band: Mapping[str, float]  # half-width by metric, as declared before the training

    def __str__(self) -> str:
        """Describe it in one line."""
        if self.level == "bit-identical":
            return f"bit-identical: {self.metrics} metrics of {self.epochs} epochs, {self.weights.tensors} tensors"
        if (first := self.first) is None:
            return f"{self.level}: departs first in the weights of the kept epoch"
        where = f"epoch {first.epoch}, {first.metric}"
        return f"{self.level}: departs first in {where}: {first.stored} then, {first.found} now"


@dataclass
class Reproduction:
    """The training under way: compares it when it ends, and writes the verdict to its run."""

    record: TrainingRecord
    band: Mapping[str, float]
    circumstances: Mapping[str, tuple[str, str]]
    name: str
    tags: dict[str, str]
    run_id: str | None = None
    scored: bool = False
    callbacks: list[Callback] = field(default_factory=list)
    comparison: Comparison = field(init=False)  # when the training has ended

    def close(self, run: Run, *, best_epoch: int) -> None:
        """Compare, and write the verdict to the run."""
        state = torch.load(run.folder / "checkpoints" / BEST, map_location="cpu", weights_only=True)["state_dict"]
        weights = {name.removeprefix("net."): tensor for name, tensor in state.items() if name.startswith("net.")}
        history = {name: dict(pairs) for name, pairs in run.metric_history(sorted(self.record.history)).items()}
        config = self.record.config
        self.comparison = compare(
            self.record.history,
            history,
            compare_weights(self.record.weights, weights),
            band=self.band,
            circumstances=self.circumstances,
            monitor=config.monitor if config.trainer.keep == "best" else None,
        )
        verdict = {"of": self.record.name, **asdict(self.comparison)}
        run.path("reproduction/verdict.json").write_text(json.dumps(verdict, indent=2), encoding="utf-8")
        run.set_tags({"verdict": self.comparison.level, "verdict.why": str(self.comparison)})
        identical, departures = self.comparison.level == "bit-identical", self.comparison.departures
        run.log_metrics({"reproduction/bit_identical": float(identical), "reproduction/departures": departures})


def main(cfg: DictConfig) -> None:
    """Retrain, compare and print.

    Raises:
        NotReproduced: the results differ.
    """
    check(cfg, ReproduceConfig)
    tracking: TrackingSettings = build(cfg.tracking)
    record = read_record(find_named(cfg))
    experiment = record.run.store.experiment_name if record.run else tracking.experiment_name
    store = open_store(replace(tracking, experiment_name=experiment), home=Path(cfg.home))
    asked = _config(record, cfg, experiment=experiment)
    _require_same_data(record, asked)
    _use_threads(record)
    differs = what_differs(record.circumstances, flatten_circumstances(json.loads(collect(COMPUTING).environment)))
    if asked.trainer.accelerator == "cpu":
        differs.pop("machine.gpu", None)
    reproduction = _declare(record, differs, store, {f"val/{name}": width for name, width in cfg.band.items()})
    trained = train(asked, watch=reproduction)
    comparison = reproduction.comparison
    _print(record, comparison)
    print(f"See it: {trained.see_it}")
    print(f"run_id={trained.run_id} verdict={comparison.level}", flush=True)
    if comparison.level == "different":
        raise NotReproduced(f"{record.name}: {comparison}")


def _config(record: TrainingRecord, cfg: DictConfig, *, experiment: str) -> DictConfig:
    """Take the stored config; places are the present command's, since a stored one may name any."""
    stored = record.config.copy()
    if missing := {"data", "tracking", "trainer"} - set(stored):
        raise InputError(f"{record.name}: its config names no {', '.join(sorted(missing))}")
    stored.home, stored.tracking = cfg.home, cfg.tracking.copy()
    stored.tracking.experiment_name = experiment
    stored.data.cache_dir = f"{cfg.home}/cache"
    if cfg.data.root is not None:
        stored.data.root, stored.data.synthetic_patients = cfg.data.root, None
    elif stored.data.get("synthetic_patients") is not None:
        stored.data.root = f"{cfg.home}/synthetic/{stored.data.synthetic_patients}"
    if stored.trainer.get("accelerator") == "auto" and record.circumstances.get("machine.gpu") == "none":
        stored.trainer.accelerator = "cpu"  # as it was then
    check(stored, TrainConfig)
    return stored


def _require_same_data(record: TrainingRecord, asked: DictConfig) -> None:
    """Refuse other images, labels or splits than those it was trained on."""
    data: XRayDataModule = build(asked.data, build(asked.augmentation, key="augmentation"))
    data.prepare()
    found = fingerprint(data.records)
    if found != record.fingerprint:
        raise InputError(
            f"data.root={asked.data.root}: not the records of {record.name} ({len(data.records)} images with "
            f"fingerprint {found[:12]}, expected {record.fingerprint[:12]}); name the folder with data.root=DIR or "
            "restore its files"
        )
    log.info("data: the same %d images, fingerprint %s", len(data.records), found[:12])


def _use_threads(record: TrainingRecord) -> None:
    """Compute with as many threads as then, where there are so many; a config that names a number does so itself."""
    then = record.circumstances.get("machine.threads", "")
    if then.isdecimal() and 0 < int(then) <= (os.cpu_count() or 1) and int(then) != torch.get_num_threads():
        log.info("threads: %s as then, not %d", then, torch.get_num_threads())
        torch.set_num_threads(int(then))


def _declare(
    record: TrainingRecord, differs: dict[str, tuple[str, str]], store: Store, band: dict[str, float]
) -> Reproduction:
    """Declare before the training what will be demanded; the run's tags hold it from its start."""
    for key, (then, now) in differs.items():
        log.warning("%s: %s then, %s now", key, then, now)
    widths = [f"{name} within {width:.4f}" for name, width in band.items()]
    promise = f"the band: {', '.join(widths)}" if differs else "the same bits"
    log.info("promised: %s", promise)
    tags = {
        "verb": "reproduce",
        "of": record.run.run_id if record.run else record.name,
        "of.config_sha256": record.config_sha256,
        "promised": promise,
    }
    if record.run and record.run.store.experiment_id == store.experiment_id:
        tags["mlflow.parentRunId"] = record.run.run_id
    name = record.run.name if record.run else Path(record.name).name
    return Reproduction(record, band, differs, f"reproduce: {name}"[:250], tags)


def compare(
    stored: History,
    found: History,
    weights: WeightDifference,
    *,
    band: Mapping[str, float],
    circumstances: Mapping[str, tuple[str, str]],
    monitor: str | None,
) -> Comparison:
    """Compare; anything but the same bits is different, unless circumstances differ and the band holds.

    `monitor` is the metric that chooses the epoch that is kept; None keeps the last.
    """
    departures = compare_histories(stored, found)
    then, now = (kept_metrics(side, band, monitor=monitor) for side in (stored, found))
    inside = all(abs(then.get(name, math.nan) - now.get(name, math.nan)) <= width for name, width in band.items())
    less: Level = "within the band" if circumstances and inside else "different"
    return Comparison(
        level=less if departures or weights.differing else "bit-identical",
        circumstances=circumstances,
        epochs=len({epoch for values in stored.values() for epoch in values}),
        metrics=len(stored),
        departures=len(departures),
        first=departures[0] if departures else None,
        weights=weights,
        stored=then,
        found=now,
        band=band,
    )


def _print(record: TrainingRecord, comparison: Comparison) -> None:
    title = f"{record.name}: {comparison.level}"
    rows = make_table(title, ("", "then", "now", ""))
    for key, (then, now) in comparison.circumstances.items():
        rows.add_row(key, then[:24], now[:24], "differs")
    for name, value in comparison.stored.items():
        found = comparison.found.get(name, math.nan)
        off = "same" if value == found else f"off by {abs(value - found):.2g}, band {comparison.band[name]:.2g}"
        rows.add_row(f"{name}, kept epoch", f"{value:.6f}", f"{found:.6f}", off)
    departed = "same" if not comparison.departures else f"{comparison.departures} depart"
    rows.add_row("metrics of all epochs", f"{comparison.epochs * comparison.metrics} values", "", departed)
    changed = "same" if not comparison.weights.differing else f"{comparison.weights.differing} differ"
    rows.add_row("weights of the kept epoch", f"{comparison.weights.tensors} tensors", "", changed)
    console(100).print(rows, f"{str(comparison)[:1].upper()}{str(comparison)[1:]}.", sep="\n")
