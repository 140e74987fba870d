"""Define XRayDataModule: from a folder of files to batches of training and validation."""

import logging
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from annotated_types import MinLen

from xray_pneumonia.data import splits, synthetic
from xray_pneumonia.data.audit import Audit, Broken, audit, examine
from xray_pneumonia.data.augment.augmentation import Augmentation
from xray_pneumonia.data.classes import Question
from xray_pneumonia.data.corrections import Corrected, correct
from xray_pneumonia.data.images.cache import ImageCache, open_cache
from xray_pneumonia.data.loaders import Batches, BatchLoader, EpochSampler
from xray_pneumonia.data.records import sample_by_patient, scan
from xray_pneumonia.data.shifts import Shift, hold_out
from xray_pneumonia.errors import InputError
from xray_pneumonia.types import Count, Gray, OpenFraction, Seed, Side, Stage, Text, Whole, Workers

MIN_VAL_IMAGES = 100  # fewer cannot choose anything: 15 of 16 right is anywhere from 70 % to 100 %
NOT_RESIDENT = (
    "data.resident=always: images are no longer kept on the model's device, which no GPU has proven to be faster; use "
    "data.resident=never: a thread prepares batches while the model trains"
)

log = logging.getLogger(__name__)


class XRayDataModule:
    """The records of one data set, audited, split by patient, and served as batches.

    The file of the config group `data` explains the other keys.

    Args:
        augmentation: of training images.
        root: a folder in the public layout or with folders called as the classes, or a CSV (see `records.scan`).
        patient: how patients are named (see `patients.rule_of`).
        progressive: sides in pixels that share the epochs in equal parts, the last of them `image_size`; for models
            that take images of any size. Validation always takes `image_size`.
        batch_size: images a step, of each process.
        split: `patient` splits validation from train and val by patient; `official` takes the folder's own; the name
            of a shift (see `shifts`) holds out the part of them that differs as `shift`, and splits the rest.
        corrections: a table that corrects labels or excludes films (see `corrections.correct`), as `FILE@SHA256`; the
            cut stays that of the labels as published, so that both states validate on the same patients.
        resident: `never`, or `auto` of configs stored by version 0.1.0, which means the same.
    """

    records: pd.DataFrame
    images: Gray
    audit: Audit
    corrected: Corrected | None = None
    _published: pd.DataFrame
    _cache: ImageCache

    def __init__(
        self,
        augmentation: Augmentation,
        *,
        root: Text,
        positive: Annotated[list[Text | int], MinLen(1)],
        negative: Annotated[list[Text | int], MinLen(1)],
        patient: Text | None,
        synthetic_patients: Count | None,
        image_size: Side,
        progressive: list[Side] | None,
        batch_size: Count,
        split: Literal["patient", "official"] | Shift,
        val_fraction: OpenFraction,
        split_seed: Seed,
        folds: Count | None,
        fold: Whole,
        max_images: Count | None,
        broken: Broken,
        follow_links: bool,
        drop_test_patients: bool,
        corrections: Text | None,
        num_workers: Workers,
        resident: Literal["auto", "never", "always"],
        cache_dir: Text,
        seed: Seed,
    ) -> None:
        if folds is not None and not (folds >= 2 and fold < folds):
            raise InputError(f"data.folds={folds} data.fold={fold}: needs 2 folds or more and a fold from 0 to folds-1")
        if folds is None and fold:
            raise InputError(f"data.fold={fold}: means nothing without data.folds; say how many folds there are")
        if progressive is not None and progressive != sorted({*progressive, image_size}):
            raise InputError(
                f"data.progressive={progressive}: needs growing sides, the last of them data.image_size={image_size}"
            )
        if resident == "always":
            raise InputError(NOT_RESIDENT)
        self.question, self._patient, self.left_out = Question.of(negative, positive), patient, dict[str, int]()
        self.sides, self._epochs = progressive or [image_size], 1
        self._augmentation, self._seed = augmentation, seed
        self._root, self._synthetic_patients, self._max_images = root, synthetic_patients, max_images
        self.image_size, self.batch_size, self._num_workers = image_size, batch_size, num_workers
        self._split, self._val_fraction, self._split_seed = split, val_fraction, split_seed
        self._folds, self._fold, self._broken, self._drop_test_patients = folds, fold, broken, drop_test_patients
        self._cache_dir, self._follow_links, self._corrections = cache_dir, follow_links, corrections

    def open(self) -> None:
        """Scan, decode and audit: sets `records`, whose splits are the folder's own, `images` and `audit`."""
        if self._synthetic_patients is not None:
            synthetic.generate(self._root, patients=self._synthetic_patients, seed=0)
        self.adopt(scan(self._root, question=self.question, patient=self._patient, follow_links=self._follow_links))

    def adopt(self, found: pd.DataFrame) -> None:
        """Decode and audit the files of a table that was scanned elsewhere."""
        self.left_out = found.attrs["left_out"]
        if self._max_images is not None and self._max_images < len(found):
            found = sample_by_patient(found, self._max_images, self._split_seed)
        self._cache = open_cache(found, folder=self._cache_dir, image_size=self.image_size)
        self._published, self.images = self._cache.records, self._cache.images
        self.records, self.audit = self._published, audit(self._cache)
        if self._corrections is not None:
            self._correct(self._corrections)

    def _correct(self, file: str) -> None:
        """Correct the labels and audit them anew; which images show the same X-ray is known."""
        self.records, self.corrected = correct(self._published, file, self.question)
        self._cache = replace(self._cache, records=self.records)
        log.warning("%s", self.corrected)
        self.audit = replace(examine(self.records[self.records["split"].ne("")], self.images), twins=self.audit.twins)

    def prepare(self) -> None:
        """Audit and split: `records["split"]` becomes train, val, shift, test, or "" for what is left out.

        Raises:
            DataRefused: the audit found errors.
            InputError: the split cannot be made or is too small to choose anything.
        """
        self.open()
        if self.corrected and not self.corrected.films:
            raise InputError(f"data.corrections={self._corrections}: names none of these films, by content or by id")
        if not self.records["split"].ne("test").any():
            raise InputError(f"data.root={self._root}: holds a test split alone, of which nothing is ever trained on")
        self.audit.require_clean(broken=self._broken)
        for warning in self.audit.warnings:
            log.warning("%s", warning)
        groups = splits.leakage_groups(self.records, self.audit.twins)
        self.records = self.records.assign(split=self._roles(groups))
        trained = self.records[self.records["split"].isin(["train", "val", "shift"])]
        splits.require_disjoint(groups[trained.index], trained["split"].reset_index(drop=True))
        self._require_usable()

    def _roles(self, groups: splits.Groups) -> pd.Series:
        """Return the split of each record."""
        published = self._published  # so that corrections do not change who validates
        official = published["split"]
        left_out = published["error"] != ""
        if self._drop_test_patients:
            left_out |= np.isin(groups, groups[official.eq("test")]) & official.ne("test")
        roles = official.mask(left_out, "")
        if self._split == "official":
            return roles.mask(self.records["split"].eq(""), "")
        rows = np.flatnonzero(roles.isin(["train", "val"]))
        if self._split != "patient":
            pool = published.iloc[rows].reset_index(drop=True)
            shifted, excluded = hold_out(self._split, pool, self.images[rows], groups[rows], seed=self._split_seed)
            roles.iloc[rows[shifted]], roles.iloc[rows[excluded]] = "shift", ""
            rows = rows[~shifted & ~excluded]
        patients = len(np.unique(groups[rows]))
        if self._folds and self._folds > patients:
            raise InputError(f"data.folds={self._folds}: there are {patients} patients; ask for fewer folds")
        shares = [1 / self._folds] * self._folds if self._folds else [1 - self._val_fraction, self._val_fraction]
        part = splits.cut(groups[rows], published["subtype"].iloc[rows], shares, seed=self._split_seed)
        roles.iloc[rows] = np.where(part == (self._fold if self._folds else 1), "val", "train")
        return roles.mask(self.records["split"].eq(""), "")

    def _require_usable(self) -> None:
        for split in ("train", "val"):
            part = self.records[self.records["split"] == split]
            counts = [int((part["label"] == label).sum()) for label in (0, 1)]
            if not all(counts):
                found = " and ".join(f"{count} {name}" for count, name in zip(counts, self.question.names, strict=True))
                raise InputError(
                    f"the {split} split needs images of both classes, and holds {found}, of "
                    f"{part['patient'].nunique()} patients; {self._cure(split)}, or add patients of the other class"
                )
        size = int(self.records["split"].eq("val").sum())
        if self._split == "official" and size < MIN_VAL_IMAGES:
            raise InputError(
                f"data.split=official: the folder's validation split holds {size} images, too few to choose anything "
                f"({MIN_VAL_IMAGES} is the least); use data.split=patient, which takes it from train by patient"
            )

    def _cure(self, split: str) -> str:
        """Return which key gives a split more images."""
        if self._split == "official":
            return "data.split=official takes the folder's own; use data.split=patient"
        if self._folds:
            return f"data.folds={self._folds}: use fewer folds" if split == "val" else "use more data.folds"
        return f"data.val_fraction={self._val_fraction:g}: {'raise' if split == 'val' else 'lower'} it"

    def spread_over(self, epochs: int) -> None:
        """Set how many epochs the sides of `progressive` share."""
        self._epochs = epochs

    def class_counts(self) -> list[int]:
        """Count the training images of each class."""
        labels = self.records.loc[self.records["split"] == "train", "label"]
        return [int((labels == label).sum()) for label in (0, 1)]

    def train_dataloader(self, *, pin_memory: bool = False) -> BatchLoader:
        """Serve augmented batches, in a new order each epoch; a GPU reads pinned memory faster."""
        return self._loader("train", training=True, pin_memory=pin_memory)

    def val_dataloader(self, *, pin_memory: bool = False) -> BatchLoader:
        """Serve every validation image once, in order."""
        return self._loader("val", pin_memory=pin_memory)

    def shift_dataloader(self) -> BatchLoader | None:
        """Serve every image of the shifted split once, in order; None where there is no such split."""
        return self._loader("shift") if self.records["split"].eq("shift").any() else None

    def _loader(self, split: Stage, *, training: bool = False, pin_memory: bool = False) -> BatchLoader:
        rows = np.flatnonzero(self.records["split"] == split).astype(np.int64)
        sampler = EpochSampler(rows, batch_size=self.batch_size, shuffle=training, seed=self._seed)
        if torch.distributed.is_initialized():
            sampler.share(rank=torch.distributed.get_rank(), world=torch.distributed.get_world_size())
        batches = Batches(
            self._cache,
            augment=partial(self._augmentation, seed=self._seed) if training else None,
            sides=self.sides if training else [self.image_size],
            epochs=self._epochs,
        )
        workers = self._num_workers if training else 0
        return BatchLoader(batches, sampler=sampler, workers=workers, pin_memory=pin_memory)
