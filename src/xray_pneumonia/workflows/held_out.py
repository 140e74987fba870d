"""The images that a model is judged on: its own validation split, a test split, another hospital's folder."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from xray_pneumonia.config import Node, build, check
from xray_pneumonia.config_stored import load_stored
from xray_pneumonia.data.audit import audit
from xray_pneumonia.data.cache import open_cache
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.data.images import Gray
from xray_pneumonia.data.records import fingerprint, scan_external
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.gate import MOST
from xray_pneumonia.tracking.archive import StoredRun

Split = Literal["val", "shift", "test", "external"]
RECORD_COLUMNS = ("mode", "width", "height", "bytes")  # joined to the predictions, for subgroups and shortcuts
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """The records of a split (index 0..N-1) and their images (N, H, W).

    `films` are training films and `validation` the model's validation films, where they are at hand.
    """

    split: Split
    root: str
    records: pd.DataFrame
    images: Gray
    films: Gray | None
    validation: Gray | None

    @property
    def fingerprint(self) -> str:
        """The identity of these images and their labels, 64 hex digits."""
        return fingerprint(self.records)


@dataclass(frozen=True, kw_only=True)
class StoredData:
    """The part of a stored config that says which data a run was trained on."""

    data: Node
    augmentation: Node


def open_split(
    run: StoredRun, split: Split, *, root: str | None, home: Path, image_size: int, validation_ids: set[str] | None
) -> HeldOut:
    """Open a split as the run's config describes its data, or another folder.

    Args:
        run: whose config it is.
        split: which.
        root: another folder than the config's.
        home: where caches are.
        image_size: of the model, in pixels.
        validation_ids: of the images that it was chosen on; None where only the cut itself tells.

    Raises:
        InputError: the data are not those of the run, or not what was expected of them.
    """
    if split == "external":
        if root is None:
            raise InputError("data.root=null: split=external needs data.root=DIR, the folder of the other hospital")
        return _external(root, home=home, image_size=image_size)
    stored = _stored_data(run)
    stored.data.cache_dir = str(home / "cache")
    if root is not None:
        stored.data.root, stored.data.synthetic_patients = root, None
    elif stored.data.synthetic_patients is not None:  # a stored config does not choose where films are drawn
        stored.data.root = str(home / "synthetic" / str(stored.data.synthetic_patients))
    if split == "test":
        stored.data.max_images = None
    data: XRayDataModule = build(stored.data, build(stored.augmentation))
    _require_test(data, stored) if split == "test" else _prepare(run, data, stored)
    if split == "shift" and data.shift_dataloader() is None:
        raise InputError(
            f"split=shift: run {run.run_id} held out no shift (its data.split={stored.data.split}); train one with "
            "data.split=dark, say, or run them all: xray train -m sweep=shifts"
        )
    if validation_ids is None:
        validation_ids = set(data.records.loc[data.records["split"].eq("val"), "id"])
    return cut(data, split, stored.data.root, validation_ids)


def _stored_data(run: StoredRun) -> DictConfig:
    """Read the data part of a stored config; it is input like any other, and checked like it."""
    whole = load_stored(run.config, origin=f"run_id={run.run_id}", sha256=run.tags["config_sha256"])
    if not {"data", "augmentation"} <= set(whole):
        raise InputError(f"run_id={run.run_id}: its config.yaml names no data")
    part = OmegaConf.create({"data": whole.data, "augmentation": whole.augmentation})
    check(part, StoredData)
    return part


def _prepare(run: StoredRun, data: XRayDataModule, stored: DictConfig) -> None:
    data.prepare()
    expected, found = run.tags.get("records_fingerprint"), fingerprint(data.records)
    if found != expected:
        raise InputError(
            f"data.root={stored.data.root}: not the records that run {run.run_id} was trained on (fingerprint "
            f"{found[:12]}, expected {str(expected)[:12]}), so its validation images may be anywhere; restore the "
            "files, or use split=external"
        )


def _require_test(data: XRayDataModule, stored: DictConfig) -> None:
    data.open()
    quarantined = {"broken_files"} if stored.data.broken == "quarantine" else set()
    data.audit.require_clean(ignore=frozenset(quarantined))
    if not data.records["split"].eq("test").any():
        raise InputError(
            f"data.root={stored.data.root}: holds no split called test; name a folder that does with data.root=DIR, or "
            "use split=external for a folder of NORMAL and PNEUMONIA"
        )
    for finding in data.audit.warnings:
        if "across_splits" in finding.code:
            log.warning("%s", finding)


def cut(data: XRayDataModule, split: Split, root: str, validation_ids: set[str]) -> HeldOut:
    """Cut a split out of opened data, and beside it a sample of training films and the validation films."""
    readable = data.records["error"] == ""
    rows = np.flatnonzero(data.records["split"].eq(split) & readable)
    chosen_on = data.records["id"].isin(validation_ids)
    films = np.flatnonzero(data.records["split"].eq("train") & readable & ~chosen_on)
    validation = np.flatnonzero(chosen_on & readable)
    films = films[np.linspace(0, len(films) - 1, min(MOST, len(films))).astype(int)]
    records = data.records.iloc[rows].reset_index(drop=True)
    pictures = [np.asarray(data.images[part]) if len(part) else None for part in (films, validation)]
    return HeldOut(split, root, records, np.asarray(data.images[rows]), *pictures)


def _external(root: str, *, home: Path, image_size: int) -> HeldOut:
    cache = open_cache(scan_external(root), folder=home / "cache", image_size=image_size)
    findings = audit(cache)
    findings.require_clean()
    for finding in findings.warnings:
        log.warning("%s", finding)
    return HeldOut("external", root, cache.records, np.asarray(cache.images), None, None)


def training_leaks(run: StoredRun, records: pd.DataFrame) -> int | None:
    """Count the images whose very bytes the run was trained on; None where the run does not say."""
    try:
        trained = pd.read_csv(run.artifact("records.csv"), usecols=["sha256", "split"], dtype=str)
    except (InputError, ValueError):
        return None
    return int(records["sha256"].isin(trained.loc[trained["split"] == "train", "sha256"]).sum())
