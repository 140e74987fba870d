"""Trained models read back from their runs, or from folders: one, or several that answer as one."""

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation import calibration, predictions
from xray_pneumonia.evaluation.abstention import fit_band, stored_band
from xray_pneumonia.evaluation.calibration import Calibration
from xray_pneumonia.evaluation.decision import FIXED, Decision, decide_calibrated
from xray_pneumonia.evaluation.input_gate import Gate
from xray_pneumonia.evaluation.metrics import Vector
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.inference.bundle import Card
from xray_pneumonia.inference.bundles import Bundle, open_bundle
from xray_pneumonia.inference.loading import open_folder
from xray_pneumonia.tracking.store import Store
from xray_pneumonia.tracking.stored_runs import StoredRun, read_run
from xray_pneumonia.training.predict import predict_logits
from xray_pneumonia.types import Gray
from xray_pneumonia.workflows.training_record import read_papers

BATCH = 128
STORED = "stored"  # the operating point that the model carries
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One model: its run, net, card and gate, and its raw predictions on its own validation split.

    A model that stands in a folder holds no predictions, and its run is what the files beside it tell of one.
    """

    run: StoredRun
    net: nn.Module
    card: Card
    validation: pd.DataFrame | None
    gate: Gate | None


@dataclass(frozen=True)
class Ensemble:
    """One model or several; several answer with the mean of their calibrated logits.

    `logits` and `validation` hold the logits that `decision` is about: the net's own for one model,
    which `decision` calibrates, and the mean of calibrated ones for several.
    """

    name: str
    members: list[Member]
    calibrations: list[Calibration]
    validation: pd.DataFrame | None
    decision: Decision
    device: torch.device

    @property
    def first(self) -> Member:
        """The first model."""
        return self.members[0]

    def logits(self, images: Gray, *, what: str = "") -> Vector:
        """Run (N, H, W) images through the nets; returns (N,); a bar shows `what`."""
        rows = [predict(member.net, images, self.device, what=what) for member in self.members]
        return _mean(self.calibrations, rows)


def joint_card(model: Ensemble) -> Card:
    """Word what was chosen for several models together, for `inference.ensemble.save_ensemble`."""
    decision = model.decision
    return replace(
        model.first.card,
        net={},
        weights_sha256="",
        run_id=",".join(member.run.run_id for member in model.members),
        temperature=decision.calibration.temperature,
        bias=decision.calibration.bias,
        operating_point=decision.threshold,
        operating_point_policy=decision.policy,
        band=[decision.band.low, decision.band.high],
    )


def load(store: Store, run_ids: list[str], settings: EvaluationSettings, *, operating_point: str) -> Ensemble:
    """Load the models of runs, and what was chosen for them on validation.

    Args:
        store: where the runs are.
        run_ids: of one training, or of several that validate on the same images.
        settings: how to choose on validation, where nothing was chosen when the model was trained.
        operating_point: `stored`, or a policy by which it is chosen on validation anew.

    Raises:
        InputError: a run is missing, unfinished or altered, or the runs do not fit each other.
    """
    if len(set(run_ids)) < len(run_ids) or not run_ids:
        raise InputError(f"run_id={run_ids}: name each run once")
    members = [_load_member(store, run_id) for run_id in run_ids]
    _require_fitting(members)
    tables = [table for member in members if (table := member.validation) is not None]
    calibrations = [_calibration(member, table, settings) for member, table in zip(members, tables, strict=True)]
    validation = tables[0]
    if len(members) > 1:
        rows = [table["logit"].to_numpy(np.float64) for table in tables]
        validation = validation.assign(logit=_mean(calibrations, rows))
    decision = _decision(members, calibrations, validation, settings, operating_point=operating_point)
    name = " + ".join(member.run.name for member in members)
    return Ensemble(name, members, calibrations, validation, decision, _device())


def load_folder(store: Store, folder: Path, *, name: str) -> Ensemble:
    """Load a model, or an ensemble, that stands in a folder, with what was chosen when it was trained.

    Args:
        store: where its evaluations go.
        folder: of a bundle with its config, or of an ensemble of such.
        name: what to call it.

    Raises:
        InputError: a file is missing, damaged or altered.
    """
    bundle = open_folder(folder, name=name)
    parts = bundle.members or (bundle,)
    members = [Member(_as_run(store, part), part.net, part.card, None, part.gate) for part in parts]
    calibrations = [Calibration(part.card.temperature, part.card.bias) for part in parts]
    card = bundle.card
    band = stored_band(card.band, threshold=card.operating_point)
    fitted = Calibration(card.temperature, card.bias)
    decision = Decision(fitted, card.operating_point, card.operating_point_policy, band)
    return Ensemble(name, members, calibrations, None, decision, _device())


def _as_run(store: Store, bundle: Bundle) -> StoredRun:
    """Tell of a bundle what a store tells of a run."""
    papers = read_papers(bundle.folder)
    code, versions = (papers.environment.get(room) or {} for room in ("code", "versions"))
    tags = {
        "config_sha256": str(papers.environment.get("config_sha256", papers.config_sha256)),
        "records_fingerprint": bundle.card.records_fingerprint,
        "mlflow.source.git.commit": str(code.get("commit", "unknown")),
        "git.dirty": str(code.get("dirty", "unknown")),
        "version.torch": str(versions.get("torch", "unknown")),
    }
    return StoredRun(
        store, bundle.card.run_id, bundle.name, "FINISHED", 0, papers.config, tags, folder=bundle.folder.resolve()
    )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _load_member(store: Store, run_id: str) -> Member:
    run = read_run(store, run_id)
    bundle = open_bundle(run.bundle(), name=f"run_id={run_id}")
    if bundle.card.run_id != run_id:
        raise InputError(
            f"run_id={run_id}: its model is that of run {bundle.card.run_id}; the run was altered, train it again"
        )
    validation = predictions.read(run.artifact("predictions/val.csv"))
    predictions.require_usable(validation, name=f"run_id={run_id}, predictions/val.csv")
    return Member(run, bundle.net, bundle.card, validation, bundle.gate)


def _require_fitting(members: list[Member]) -> None:
    first = members[0]
    for other in members[1:]:
        if _validated_on(other) != _validated_on(first):
            raise InputError(
                f"run_id: {first.run.run_id} and {other.run.run_id} validate on different images, so one may have "
                "trained on what the other is judged by; use runs with the same data.split_seed, folds and data.root"
            )
        if other.card.image_size != first.card.image_size:
            raise InputError(
                f"run_id: {other.run.run_id} sees {other.card.image_size} pixels, {first.run.run_id} "
                f"{first.card.image_size}; an ensemble needs one image size"
            )


def _validated_on(member: Member) -> list[str]:
    return [] if member.validation is None else list(member.validation["id"])


def _calibration(member: Member, validation: pd.DataFrame, settings: EvaluationSettings) -> Calibration:
    if member.card.operating_point_policy != FIXED:
        return Calibration(member.card.temperature, member.card.bias)
    log.info("run %s carries no calibration; it is fitted on the run's validation predictions", member.run.run_id)
    return calibration.fit(validation["logit"], validation["label"], method=settings.calibration)


def _decision(
    members: list[Member],
    calibrations: list[Calibration],
    validation: pd.DataFrame,
    settings: EvaluationSettings,
    *,
    operating_point: str,
) -> Decision:
    """Take what the model carries, or choose on validation what it does not."""
    card = members[0].card
    fitted = calibrations[0] if len(members) == 1 else Calibration()
    if operating_point != STORED:
        settings = settings.with_policy(operating_point)
    elif len(members) == 1 and card.operating_point_policy != FIXED:
        table, point = fitted.apply(validation), card.operating_point
        if card.band:
            band = stored_band(card.band, threshold=point)
        else:
            band = fit_band(table, error=settings.abstention_error, threshold=point)
        return Decision(fitted, point, card.operating_point_policy, band)
    return decide_calibrated(validation, fitted, settings)


def _mean(calibrations: list[Calibration], rows: list[Vector]) -> Vector:
    if len(rows) == 1:
        return rows[0]
    calibrated = [fitted.logits(row) for fitted, row in zip(calibrations, rows, strict=True)]
    return np.asarray(np.mean(calibrated, axis=0), np.float64)


def predict(net: nn.Module, images: Gray, device: torch.device, *, what: str = "") -> Vector:
    """Run (N, H, W) images through a net; returns logits (N,); a bar shows `what`."""
    _, logits = predict_logits(net, _batches(images, what), device=device)
    return np.asarray(logits, np.float64)


def _batches(images: Gray, what: str) -> Iterator[dict[str, Tensor]]:
    starts = range(0, len(images), BATCH)
    quiet = not (what and sys.stderr.isatty())
    for start in track(starts, what, console=Console(stderr=True), disable=quiet, transient=True):
        pixels = np.ascontiguousarray(images[start : start + BATCH])
        yield {"image": torch.from_numpy(pixels)[:, None], "index": torch.arange(start, start + len(pixels))}
