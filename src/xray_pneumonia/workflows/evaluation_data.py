"""Opens the images that a model is evaluated on: its validation split, a test split, another hospital's folder."""

import hashlib
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from typing_extensions import TypedDict

from xray_pneumonia.config import Node, build, check
from xray_pneumonia.data.audit import Audit, Broken, audit, examine
from xray_pneumonia.data.classes import Question
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.data.images.cache import open_cache
from xray_pneumonia.data.records import fingerprint, scan_external
from xray_pneumonia.data.shifts import find_parts
from xray_pneumonia.data.splits import in_other_splits
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.assessment import Decision
from xray_pneumonia.evaluation.input_gate import ThumbnailGate, fit_thumbnail_gate
from xray_pneumonia.evaluation.subgroups import Answers, count_answered
from xray_pneumonia.tracking.stored_runs import StoredRun
from xray_pneumonia.types import CLASSES, Classes, Gray, Text
from xray_pneumonia.workflows.find_model import EvaluatedModel
from xray_pneumonia.workflows.own_code import load_config

CORRECTIONS = "corrections.csv"  # a run's copy of the file that `data.corrections` names
Split = Literal["val", "shift", "test", "external"]
MOST = 5000  # training images that a gate is fitted to
# Joined to the predictions, for subgroups and shortcuts; `published` is the label before corrections.
RECORD_COLUMNS = ("mode", "width", "height", "bytes", "published")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """The records of a split (index 0..N-1) and their images (N, H, W).

    `training` holds training images and `validation` the model's validation images, where they are known. `elsewhere`
    counts the records whose image is in another split of the folder too, by bytes or looks; None without other splits.
    `left_out` counts the images of the whole folder that are of neither of `classes`; `corrections` words corrections.
    """

    split: Split
    root: str
    records: pd.DataFrame
    images: Gray
    training: Gray | None
    validation: Gray | None
    elsewhere: int | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    classes: Classes = CLASSES
    corrections: str = ""

    @property
    def fingerprint(self) -> str:
        """Identify the records: names, images, labels and split; 64 hex digits."""
        return fingerprint(self.records)

    @property
    def contents(self) -> str:
        """Identify the images, whatever they are called and wherever they are; 64 hex digits."""
        return hashlib.sha256("".join(sorted(set(self.records["sha256"]))).encode()).hexdigest()

    def answers(self, table: pd.DataFrame, decision: Decision) -> list[Answers]:
        """Count the answers, of raw predictions, on all of it and on what each shift would hold out of it."""
        parts = {"all of them": np.ones(len(table), bool), **find_parts(self.records, self.images)}
        return count_answered(decision.calibration.apply(table), decision.band, parts)

    def fit_gate(self) -> ThumbnailGate | None:
        """Fit a gate for a model without one, where training and validation images are known."""
        if self.training is None or self.validation is None:
            return None
        return fit_thumbnail_gate(self.training, self.validation)


class EvaluationFolder(TypedDict):
    """The key `data` of `xray evaluate`: null means as in the training, and for `broken` of an external one: refuse."""

    root: Text | None
    broken: Broken | None
    positive: list[Text | int] | None
    negative: list[Text | int] | None
    patient: Text | None


@dataclass(frozen=True, kw_only=True)
class StoredData:
    """The part of a stored config that says which data a run was trained on."""

    data: Node
    augmentation: Node


def open_split(
    run: StoredRun,
    split: Split,
    *,
    folder: "EvaluationFolder",
    home: Path,
    image_size: int,
    validation_ids: set[str] | None,
) -> HeldOut:
    """Open a split as the run's config describes its data, or another folder (`root`).

    `validation_ids` are those of the images that the model was chosen on; None where only the split itself tells.

    Raises:
        InputError: the data are not those of the run, or not what was expected of them.
    """
    if split == "external":
        if folder["root"] is None:
            raise InputError("data.root=null: split=external needs data.root=DIR, the folder of the other hospital")
        question = _question(folder, run)
        return _open_external(folder, folder["root"], question, home=home, image_size=image_size)
    if split in {"val", "shift"} and run.tags.get("verb") == "adapt":
        raise InputError(
            f"split={split}: {run.run_id} was adapted to all of its films; how it does on others, by cross-validation, "
            "says its evaluation/adapt/adaptation.html; judge it on further films with split=external data.root=DIR"
        )
    data, stored = open_data(run, split, folder=folder, home=home)
    if split == "shift" and data.shift_dataloader() is None:
        raise InputError(
            f"split=shift: run {run.run_id} held out no shift (its data.split={stored.data.split}); train one with "
            "data.split=dark, say, or run them all: xray train -m sweep=shifts"
        )
    if validation_ids is None:
        validation_ids = set(data.records.loc[data.records["split"].eq("val"), "id"])
    return cut(data, split, stored.data.root, validation_ids)


def open_data(
    run: StoredRun, split: Split, *, folder: "EvaluationFolder", home: Path
) -> tuple[XRayDataModule, DictConfig]:
    """Open the data of a run, which must be those it was trained on, or their test split; returns the config too."""
    stored = _stored_data(run, split, folder, home=home)
    data: XRayDataModule = build(stored.data, build(stored.augmentation, key="augmentation"))
    _open_test(data, stored) if split == "test" else _prepare(run, data, stored)
    return data, stored


def _question(folder: "EvaluationFolder", run: StoredRun) -> Question:
    """Take the question of a run's model, with the names that a folder has for its classes where they are given."""
    data = load_config(run, origin=f"run_id={run.run_id}").get("data", {})
    asked = Question.of(list(data.get("negative", CLASSES[:1])), list(data.get("positive", CLASSES[1:])))
    return Question.of(folder["negative"] or asked.negative, folder["positive"] or asked.positive)


def _stored_data(run: StoredRun, split: Split, folder: "EvaluationFolder", *, home: Path) -> DictConfig:
    """Read the data part of a stored config, checked like any other input, with the places of this command."""
    whole = load_config(run, origin=f"run_id={run.run_id}")
    if not {"data", "augmentation"} <= set(whole):
        raise InputError(f"run_id={run.run_id}: its config.yaml names no data")
    stored = OmegaConf.create({"data": whole.data, "augmentation": whole.augmentation})
    check(stored, StoredData)
    stored.data.cache_dir = str(home / "cache")
    for key in ("positive", "negative", "patient", "broken"):
        if folder[key] is not None:  # type: ignore[literal-required]
            stored.data[key] = folder[key]  # type: ignore[literal-required]
    if folder["root"] is not None:
        stored.data.root, stored.data.synthetic_patients = folder["root"], None
    elif stored.data.synthetic_patients is not None:  # a stored config does not choose where images are generated
        stored.data.root = str(home / "synthetic" / str(stored.data.synthetic_patients))
    if split == "test":
        stored.data.max_images = None
    if stored.data.get("corrections"):
        with suppress(InputError):  # a folder of weights has no copy; the file itself is read, by its hash
            stored.data.corrections = f"{run.artifact(CORRECTIONS)}@{stored.data.corrections.rpartition('@')[2]}"
    return stored


def _prepare(run: StoredRun, data: XRayDataModule, stored: DictConfig) -> None:
    data.prepare()
    expected, found = run.tags.get("records_fingerprint"), fingerprint(data.records)
    if found != expected:
        raise InputError(
            f"data.root={stored.data.root}: not the records that run {run.run_id} was trained on (fingerprint "
            f"{found[:12]}, expected {str(expected)[:12]}), so its validation images may be anywhere; restore the "
            "files, or use split=external"
        )


def _open_test(data: XRayDataModule, stored: DictConfig) -> None:
    """Audit the test split alone: what is wrong with the other splits changes no figure on it."""
    data.open()
    own = data.records[data.records["split"] == "test"]
    if own.empty:
        raise InputError(
            f"data.root={stored.data.root}: holds no split called test; name a folder that does with data.root=DIR, or "
            "use split=external for a folder with a folder for each class"
        )
    _require_clean(examine(own, data.images), stored.data.broken)
    for finding in data.audit.findings:
        if finding.code.endswith(("_across_splits", "_labels")):
            log.warning("in the whole folder, %s", finding)


def _require_clean(findings: Audit, broken: Broken) -> None:
    """Refuse errors in the data, and log what else was found."""
    findings.require_clean(broken=broken)
    for finding in findings.findings:
        log.warning("%s", finding)


def cut(data: XRayDataModule, split: Split, root: str, validation_ids: set[str]) -> HeldOut:
    """Cut a split out of opened data, together with a sample of training images and the validation images."""
    readable = data.records["error"] == ""
    rows = np.flatnonzero(data.records["split"].eq(split) & readable)
    chosen_on = data.records["id"].isin(validation_ids)
    known = np.flatnonzero(data.records["split"].eq("train") & readable & ~chosen_on)
    known = known[np.linspace(0, len(known) - 1, min(MOST, len(known))).astype(int)]
    records = data.records.iloc[rows].reset_index(drop=True)
    parts = (known, np.flatnonzero(chosen_on & readable))
    training, validation = (np.asarray(data.images[part]) if len(part) else None for part in parts)
    alone = split != "test" or data.records["split"].eq("test").all()
    elsewhere = None if alone else int(in_other_splits(data.records["split"], data.audit.twins)[rows].sum())
    images = np.asarray(data.images[rows])
    classes, corrected = data.question.names, str(data.corrected or "")
    return HeldOut(split, root, records, images, training, validation, elsewhere, data.left_out, classes, corrected)


def _open_external(
    folder: "EvaluationFolder", root: str, question: Question, *, home: Path, image_size: int
) -> HeldOut:
    found = scan_external(root, question=question, patient=folder["patient"])
    cache = open_cache(found, folder=home / "cache", image_size=image_size)
    _require_clean(audit(cache), folder["broken"] or "refuse")
    readable = np.flatnonzero(cache.records["error"] == "")
    records = cache.records.iloc[readable].reset_index(drop=True)
    images = np.asarray(cache.images[readable])
    return HeldOut("external", root, records, images, None, None, left_out=found.attrs["left_out"])


def require_comparable(held_out: HeldOut, evaluated: EvaluatedModel, other: EvaluatedModel | None) -> None:
    """Refuse a split that a model was trained on, and models that take images of different sizes (InputError)."""
    known = evaluated.validation
    if held_out.split == "val" and known is not None and set(held_out.records["id"]) != set(known["id"]):
        raise InputError(
            f"run_id: the validation predictions of {evaluated.runs[0].run_id} are about other images than its config "
            "names; the run was altered"
        )
    if other is None:
        return
    if other.model.card.class_names != evaluated.model.card.class_names:
        names = [" and ".join(one.model.card.class_names) for one in (evaluated, other)]
        raise InputError(f"compare_to: answers another question ({names[1]}) than this model ({names[0]})")
    if other.model.card.image_size != evaluated.model.card.image_size:
        raise InputError("compare_to: the two models see images of different size; compare runs of one data.image_size")
    if held_out.split == "val" and _validated_on(other) != _validated_on(evaluated):
        raise InputError(
            "compare_to: the two models validate on different images, so one may have trained on what the other is "
            "judged by; compare runs with the same data.split_seed and folds, or use split=test"
        )


def _validated_on(evaluated: EvaluatedModel) -> set[str] | str:
    """Identify a validation split by its images, or by the records of the training where no predictions are known."""
    if evaluated.validation is None:
        return evaluated.runs[0].tags["records_fingerprint"]
    return set(evaluated.validation["id"])
