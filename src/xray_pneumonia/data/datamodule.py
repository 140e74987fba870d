"""XRayDataModule: from a folder of files to batches of training and validation."""

import logging
from typing import Literal

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from xray_pneumonia.data import records as tables
from xray_pneumonia.data import splits, synthetic
from xray_pneumonia.data.audit import Audit, Broken, audit
from xray_pneumonia.data.augment.augmentation import Augmentation
from xray_pneumonia.data.device_images import Beside, Residence, arrange
from xray_pneumonia.data.images.cache import ImageCache, open_cache
from xray_pneumonia.data.loaders import AheadLoader, Batch, Batches, EpochSampler
from xray_pneumonia.data.shifts import Shift, hold_out
from xray_pneumonia.data.worker_loader import SILENCE, Loader
from xray_pneumonia.errors import InputError
from xray_pneumonia.types import CLASSES, Count, Gray, OpenFraction, Seed, Side, Stage, Whole, Workers

MIN_VAL_IMAGES = 100  # fewer cannot choose anything: 15 of 16 right is anywhere from 70 % to 100 %

log = logging.getLogger(__name__)


class XRayDataModule(pl.LightningDataModule):
    """The records of one data set, audited, cut by patient, and served as batches.

    Args:
        augmentation: changes training images.
        root: a folder in the public layout, or a CSV (see `records.scan`).
        synthetic_patients: generate X-rays of so many fake patients at `root` first; null for real files.
        image_size: height and width, in pixels, of what the net sees.
        progressive: train on smaller images first: sides in pixels that share the epochs in equal parts, the last of
            them `image_size`; for nets that take images of any size. Validation always sees `image_size`.
        batch_size: images a step, of each process.
        split: `patient` cuts validation from train and val by patient; `official` takes the folder's own; the name
            of a shift (see `shifts`) holds out the part of them that differs as `shift`, and cuts the rest by patient.
        val_fraction: the share of the images that validates.
        split_seed: of the cut; it stays when `seed` changes, so that runs can be compared on the same patients.
        folds: cut into so many folds instead; null for one cut.
        fold: which fold validates, counted from 0.
        max_images: work on a sample of about so many images, whole patients; null for all.
        broken: refuse to train when a file cannot be read, or leave such files out (quarantine).
        drop_test_patients: leave out of training whoever also occurs in the folder's test split.
        num_workers: processes that prepare batches; 0 prepares them in the main process.
        resident: keep all decoded images on the net's device, so that none travels while it trains: `always`, `never`,
            or `auto`, on a GPU with room for them.
        cache_dir: where decoded images live.
        seed: of shuffling and augmentation.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        *,
        root: str,
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
        drop_test_patients: bool,
        num_workers: Workers,
        resident: Residence,
        cache_dir: str,
        seed: Seed,
    ) -> None:
        super().__init__()
        if folds is not None and not (folds >= 2 and fold < folds):
            raise InputError(
                f"data.folds={folds} data.fold={fold}: needs at least 2 folds and a fold from 0 to folds-1"
            )
        if progressive is not None and progressive != sorted({*progressive, image_size}):
            raise InputError(
                f"data.progressive={progressive}: needs growing sides, the last of them data.image_size={image_size}"
            )
        self.sides, self._epochs = progressive or [image_size], 1
        self._augmentation, self._seed = augmentation, seed
        self._root, self._synthetic_patients, self._max_images = root, synthetic_patients, max_images
        self.image_size, self.batch_size, self._num_workers = image_size, batch_size, num_workers
        self._split, self._val_fraction, self._split_seed = split, val_fraction, split_seed
        self._folds, self._fold = folds, fold
        self._broken, self._drop_test_patients, self._cache_dir = broken, drop_test_patients, cache_dir
        self._resident, self._beside = resident, Beside()
        self._start = (0, 0)  # epoch and batch
        self.records: pd.DataFrame
        self.images: Gray
        self.audit: Audit
        self._cache: ImageCache

    def open(self) -> None:
        """Scan, decode and audit: sets `records`, whose splits are the folder's own, `images` and `audit`."""
        if self._synthetic_patients is not None:
            synthetic.generate(self._root, patients=self._synthetic_patients, seed=0)
        found = tables.scan(self._root)
        if self._max_images is not None and self._max_images < len(found):
            found = tables.sample_by_patient(found, self._max_images, self._split_seed)
        self._cache = open_cache(found, folder=self._cache_dir, image_size=self.image_size)
        self.records, self.images = self._cache.records, self._cache.images
        self.audit = audit(self._cache)

    def prepare(self) -> None:
        """Pass the gate and cut: `records["split"]` becomes train, val, test, or "" for what is left out.

        Raises:
            DataRefused: the audit found errors.
            InputError: the split cannot be made or is too small to choose anything.
        """
        self.open()
        if not self.records["split"].ne("test").any():
            raise InputError(
                f"data.root={self._root}: holds a test split alone, and no training film is ever cut from one"
            )
        self.audit.require_clean(broken=self._broken)
        for warning in self.audit.warnings:
            log.warning("%s", warning)
        groups = splits.leakage_groups(self.records, self.audit.twins)
        self.records = self.records.assign(split=self._roles(groups))
        trained = self.records[self.records["split"].isin(["train", "val", "shift"])]
        splits.require_disjoint(groups[trained.index], trained["split"].reset_index(drop=True))
        self._require_usable()

    def _roles(self, groups: splits.Groups) -> pd.Series:
        official = self.records["split"].copy()
        left_out = self.records["error"] != ""
        if self._drop_test_patients:
            in_test = np.isin(groups, groups[official.eq("test")])
            left_out |= in_test & official.ne("test")
        pool = official.ne("test") & ~left_out
        roles = official.mask(left_out, "")
        if self._split != "patient" and self._split != "official":
            rows = np.flatnonzero(pool)
            there = self.records.iloc[rows].reset_index(drop=True)
            shifted, beside = hold_out(self._split, there, self.images[rows], groups[rows], seed=self._split_seed)
            roles.iloc[rows[shifted]], roles.iloc[rows[beside]] = "shift", ""
            pool.iloc[rows[shifted | beside]] = False
        if self._split != "official":
            parts = self._folds or 2
            shares = [1 / parts] * parts if self._folds else [1 - self._val_fraction, self._val_fraction]
            rows = np.flatnonzero(pool)
            part = splits.cut(groups[rows], self.records["subtype"].iloc[rows], shares, seed=self._split_seed)
            roles.iloc[rows] = np.where(part == (self._fold if self._folds else 1), "val", "train")
        return roles

    def _require_usable(self) -> None:
        for split in ("train", "val"):
            part = self.records[self.records["split"] == split]
            counts = [int((part["label"] == label).sum()) for label in range(len(CLASSES))]
            if not all(counts):
                held = " and ".join(f"{count} {name}" for count, name in zip(counts, CLASSES, strict=True))
                raise InputError(
                    f"the {split} split needs images of both classes, and holds {held}, of {part['patient'].nunique()} "
                    f"patients; {self._cure(split)}, or add patients of the class that it lacks"
                )
        size = int(self.records["split"].eq("val").sum())
        if self._split == "official" and size < MIN_VAL_IMAGES:
            raise InputError(
                f"data.split=official: the folder's validation split holds {size} images, too few to choose anything "
                f"({MIN_VAL_IMAGES} is the least); use data.split=patient, which cuts it from train by patient"
            )

    def _cure(self, split: str) -> str:
        """Say which key gives a split more images."""
        if self._split == "official":
            return "data.split=official takes the folder's own; use data.split=patient"
        if self._folds:
            return f"data.folds={self._folds}: use fewer folds" if split == "val" else "use more data.folds"
        return f"data.val_fraction={self._val_fraction:g}: {'raise' if split == 'val' else 'lower'} it"

    def spread_over(self, epochs: int) -> None:
        """Say how many epochs `progressive` has."""
        self._epochs = epochs

    def class_counts(self) -> list[int]:
        """Count the training images of each class."""
        labels = self.records.loc[self.records["split"] == "train", "label"]
        return [int((labels == label).sum()) for label in (0, 1)]

    def go_on(self, *, epoch: int, batch: int) -> None:
        """Serve training batches from here on: after so many epochs, and so many batches of the next one."""
        self._start = (epoch, batch)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Serve augmented batches, in a new order each epoch."""
        return self._loader("train", training=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Serve every validation image once, in order."""
        return self._loader("val", training=False)

    def shift_dataloader(self) -> DataLoader[Batch] | None:
        """Serve every image of the shifted split once, in order; None where there is no such split."""
        return self._loader("shift", training=False) if self.records["split"].eq("shift").any() else None

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Finish a batch on the net's device."""
        return self._beside.finish(batch)

    def _loader(self, split: Stage, *, training: bool) -> DataLoader[Batch]:
        augmentation = self._augmentation if training and self._augmentation.active else None
        rows = np.flatnonzero(self.records["split"] == split).astype(np.int64)
        sampler = EpochSampler(rows, batch_size=self.batch_size, shuffle=training, seed=self._seed)
        if training:
            sampler.go_on(epoch=self._start[0], batch=self._start[1])
        if torch.distributed.is_initialized():
            sampler.share(rank=torch.distributed.get_rank(), world=torch.distributed.get_world_size())
        # Outside of a training nobody finishes batches, so they come finished, for the CPU.
        net = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        beside = Beside()
        if training and self.trainer:
            beside = self._beside = arrange(net, self.images, augmentation, wanted=self._resident)
        # Workers are ahead by themselves, and plain slices of the cache are there at once.
        ahead = augmentation is not None and not self._num_workers
        return (AheadLoader if ahead else Loader)(
            self._batches(augmentation, beside, training=training),
            sampler=sampler,
            batch_size=None,
            num_workers=self._num_workers if training else 0,
            persistent_workers=training and self._num_workers > 0,
            timeout=SILENCE if training and self._num_workers > 0 else 0,
            pin_memory=net.type == "cuda",  # a GPU fetches from pinned memory while everybody else goes on
        )

    def _batches(self, augmentation: Augmentation | None, beside: Beside, *, training: bool) -> Batches:
        return Batches(
            self._cache,
            augmentation=None if beside.augmentation else augmentation,
            later=beside.augmentation,
            travels=beside.resident is None,
            seed=self._seed,
            sides=self.sides if training else [self.image_size],
            epochs=self._epochs,
        )
