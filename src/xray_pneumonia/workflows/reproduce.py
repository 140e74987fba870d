"""`xray reproduce`: train a stored model again from its own config, and prove that it comes out the same."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.table import Table

from xray_pneumonia.config import Node, anchor, build, check
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.data.records import fingerprint
from xray_pneumonia.errors import InputError, NotReproduced
from xray_pneumonia.evaluation.agreement import (
    DIFFERENT,
    IDENTICAL,
    Band,
    Verdict,
    compare_weights,
    declare_band,
    judge,
)
from xray_pneumonia.evaluation.run_groups import Entry, group
from xray_pneumonia.tracking import stored_runs
from xray_pneumonia.tracking.provenance import collect
from xray_pneumonia.tracking.registry import find_registered
from xray_pneumonia.tracking.run import Run
from xray_pneumonia.tracking.store import Store, TrackingSettings, masked, open_store
from xray_pneumonia.tracking.stored_runs import read_run
from xray_pneumonia.training.checkpoints import BEST
from xray_pneumonia.types import Positive
from xray_pneumonia.workflows.find_model import shipped_models
from xray_pneumonia.workflows.train import TrainConfig, train
from xray_pneumonia.workflows.training_record import (
    Evidence,
    circumstances_now,
    of_folder,
    of_run,
    read_weights,
    what_differs,
)
from xray_pneumonia.workflows.training_run import COMPUTING

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """The top-level keys of reproduce.yaml."""

    home: str
    run_id: str | None
    model: str | None
    data: Mapping[str, str | None]
    band: dict[str, Positive]
    tracking: Node


@dataclass
class Proof:
    """Watches the training, and has the last word: `verdict` is there when it is over."""

    evidence: Evidence
    band: Band
    circumstances: dict[str, tuple[str, str]]
    name: str
    tags: dict[str, str]
    run_id: str | None = None
    callbacks: list[Callback] = field(default_factory=list)
    verdict: Verdict | None = None

    def close(self, run: Run, *, best_epoch: int) -> None:
        """Compare, and write the verdict to the run."""
        config = self.evidence.config
        found = run.metric_history(sorted(self.evidence.history))
        self.verdict = judge(
            self.evidence.history,
            {name: dict(pairs) for name, pairs in found.items()},
            compare_weights(self.evidence.weights, read_weights(run.folder / "checkpoints" / BEST)),
            band=self.band,
            circumstances=self.circumstances,
            monitor=config.monitor if config.trainer.keep == "best" else None,
            mode=config.mode,
        )
        text = json.dumps({"of": self.evidence.name, **self.verdict.plain()}, indent=2)
        run.path("reproduction/verdict.json").write_text(text, encoding="utf-8")
        run.set_tags({"verdict": self.verdict.level, "verdict.why": str(self.verdict)})
        identical = float(self.verdict.level == IDENTICAL)
        run.log_metrics({"reproduction/bit_identical": identical, "reproduction/departures": self.verdict.departures})


def main(cfg: DictConfig) -> None:
    """Retrain, compare and print.

    Raises:
        NotReproduced: it came out different.
    """
    anchor(cfg)
    check(cfg, ReproduceConfig)
    tracking: TrackingSettings = build(cfg.tracking)
    evidence = _find(cfg, tracking)
    experiment = evidence.run.store.experiment_name if evidence.run else tracking.experiment_name
    store = open_store(replace(tracking, experiment_name=experiment), home=Path(cfg.home))
    asked = _as_it_was(evidence, cfg, experiment=experiment)
    _require_same_data(evidence, asked)
    _use_threads(evidence)
    differs = what_differs(evidence.circumstances, circumstances_now(collect(COMPUTING).environment))
    if asked.trainer.accelerator == "cpu":
        differs.pop("machine.gpu", None)
    proof = _promise(evidence, differs, store, {f"val/{name}": width for name, width in cfg.band.items()})
    trained = train(asked, watch=proof)
    verdict = proof.verdict
    if verdict is None:
        raise RuntimeError("the training ended without a verdict")
    _print(evidence, verdict, Console(width=None if Console().is_terminal else 100))
    print(f"See it: mlflow ui --backend-store-uri {masked(store.uri)}")
    print(f"run_id={trained.run_id} verdict={verdict.level}", flush=True)
    if verdict.level == DIFFERENT:
        raise NotReproduced(f"{evidence.name}: {verdict}")


def _find(cfg: DictConfig, tracking: TrackingSettings) -> Evidence:
    """Find what is to be reproduced; a folder needs no store."""
    if (cfg.run_id is None) == (cfg.model is None):
        raise InputError("run_id, model: name one of them: run_id=ID, model=NAME@ALIAS or model=FOLDER")
    if cfg.model is not None:
        place = Path(cfg.model).expanduser()
        folder = place if place.is_dir() else shipped_models().get(cfg.model)
        if folder is not None:
            return of_folder(folder.resolve())
    if cfg.model is not None and "@" not in cfg.model:
        raise InputError(f"model={cfg.model}: no such folder; write NAME@ALIAS for a registered model")
    store = open_store(tracking, home=Path(cfg.home))
    return of_run(read_run(store, cfg.run_id) if cfg.model is None else find_registered(store, cfg.model))


def _as_it_was(evidence: Evidence, cfg: DictConfig, *, experiment: str) -> DictConfig:
    """Take the stored config; only places are the present command's, since a stored one may name any."""
    stored = evidence.config.copy()
    home = Path(cfg.home)
    missing = {"data", "tracking", "trainer"} - set(stored)
    if missing:
        raise InputError(f"{evidence.name}: its config names no {', '.join(sorted(missing))}")
    stored.home, stored.tracking = cfg.home, cfg.tracking.copy()
    stored.tracking.experiment_name = experiment
    stored.data.cache_dir = str(home / "cache")
    if cfg.data.root is not None:
        stored.data.root, stored.data.synthetic_patients = cfg.data.root, None
    elif stored.data.get("synthetic_patients") is not None:
        stored.data.root = str(home / "synthetic" / str(stored.data.synthetic_patients))
    if stored.trainer.get("accelerator") == "auto" and evidence.circumstances.get("machine.gpu") == "none":
        stored.trainer.accelerator = "cpu"  # as it was then
    check(stored, TrainConfig)
    return stored


def _require_same_data(evidence: Evidence, asked: DictConfig) -> None:
    """Refuse other images, labels or splits than those it was trained on."""
    data: XRayDataModule = build(asked.data, build(asked.augmentation))
    data.prepare()
    found = fingerprint(data.records)
    if found != evidence.fingerprint:
        raise InputError(
            f"data.root={asked.data.root}: not the records of {evidence.name} ({len(data.records)} images with "
            f"fingerprint {found[:12]}, expected {evidence.fingerprint[:12]}); name the folder with data.root=DIR or "
            "restore its files"
        )
    log.info("data: the same %d images, fingerprint %s", len(data.records), found[:12])


def _use_threads(evidence: Evidence) -> None:
    """Compute with as many threads as then, where there are so many; a config that names a number does so itself."""
    then = evidence.circumstances.get("machine.threads", "")
    if then.isdecimal() and 0 < int(then) <= (os.cpu_count() or 1) and int(then) != torch.get_num_threads():
        log.info("threads: %s as then, not %d", then, torch.get_num_threads())
        torch.set_num_threads(int(then))


def _promise(evidence: Evidence, differs: dict[str, tuple[str, str]], store: Store, default: dict[str, float]) -> Proof:
    """Declare what will be demanded, before anything is trained; the tags hold it from the first moment."""
    band = declare_band(_seeds(evidence, list(default)), default)
    for key, (then, now) in differs.items():
        log.warning("%s: %s then, %s now", key, then, now)
    widths = ", ".join(f"{name} within {width:.4f}" for name, width in band.widths.items())
    promise = f"the band: {widths} ({band.source})" if differs else "the same bits"
    log.info("promised: %s", promise)
    tags = {
        "verb": "reproduce",
        "of": evidence.run.run_id if evidence.run else evidence.name,
        "of.config_sha256": evidence.config_sha256,
        "promised": promise,
    }
    if evidence.run and evidence.run.store.experiment_id == store.experiment_id:
        tags["mlflow.parentRunId"] = evidence.run.run_id
    name = f"reproduce: {evidence.run.name if evidence.run else Path(evidence.name).name}"[:250]
    return Proof(evidence, band, differs, name, tags)


def _seeds(evidence: Evidence, names: list[str]) -> dict[str, list[float]]:
    """Read the kept epoch's metrics of the runs that differ from this one in the seed alone, itself included."""
    run = evidence.run
    if run is None:
        return {}
    same = {"verb": "train", "records_fingerprint": evidence.fingerprint}
    runs = stored_runs.find(run.store, same, status="FINISHED")
    groups = group(
        [Entry(one.run_id, one.name, one.params, one.metrics) for one in runs], best_by="best/auroc", maximize=True
    )
    members = next((one.entries for one in groups if any(entry.run_id == run.run_id for entry in one.entries)), ())
    by_seed = {entry.params.get("seed", entry.run_id): entry.metrics for entry in members}
    found = {name: f"best/{name.partition('/')[2]}" for name in names}
    return {name: [known[key] for known in by_seed.values() if key in known] for name, key in found.items()}


def _print(evidence: Evidence, verdict: Verdict, console: Console) -> None:
    rows = Table(title=f"{evidence.name}: {verdict.level}", title_justify="left", title_style="bold")
    for column in ("", "then", "now", ""):
        rows.add_column(column)
    for key, (then, now) in verdict.circumstances.items():
        rows.add_row(key, then[:24], now[:24], "differs")
    for name, value in verdict.stored.items():
        found = verdict.found.get(name, float("nan"))
        off = "same" if value == found else f"off by {abs(value - found):.2g}, band {verdict.band.widths[name]:.2g}"
        rows.add_row(f"{name}, kept epoch", f"{value:.6f}", f"{found:.6f}", off)
    same = f"{verdict.epochs * verdict.metrics} values"
    departed = "same" if not verdict.departures else f"{verdict.departures} depart"
    rows.add_row("metrics of all epochs", same, "", departed)
    changed = "same" if not verdict.weights.differing else f"{verdict.weights.differing} differ"
    rows.add_row("weights of the kept epoch", f"{verdict.weights.tensors} tensors", "", changed)
    console.print(rows)
    console.print(f"{str(verdict)[:1].upper()}{str(verdict)[1:]}.", highlight=False)
