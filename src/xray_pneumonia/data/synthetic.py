"""Generate chest X-rays: two learnable classes, patients, the public naming scheme, real JPEG files.

They let every command and test run with no download. An image shows lungs, ribs, spine and heart; a pneumonia adds
bright patches, few and sharp for bacteria, many and faint for viruses. Size, colour mode and exposure vary,
independently of the label.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from xray_pneumonia.errors import InputError
from xray_pneumonia.types import Vector
from xray_pneumonia.whole_files import file_lock

log = logging.getLogger(__name__)
VERSION = 1  # raise it whenever the same seed draws other images
SEAL = "synthetic.json"
PNEUMONIA_SHARE = 0.6
SPLIT_SHARES = {"train": 0.8, "val": 0.05, "test": 0.15}


@dataclass(frozen=True)
class Patient:
    """One generated patient, whose images share the anatomy that `seed` draws."""

    name: str
    subtype: str
    split: str
    seed: int
    images: int


def generate(root: str | Path, *, patients: int, seed: int) -> None:
    """Write the images of so many patients below `root`, where they do not exist already.

    Raises:
        InputError: `root` holds other files.
    """
    root = Path(root)
    recipe = {"patients": patients, "seed": seed, "version": VERSION}
    root.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(f"{root}.lock"):
        if (root / SEAL).exists() and json.loads((root / SEAL).read_text(encoding="utf-8")) == recipe:
            if lost := sum(_write(root, patient) for patient in draw_patients(patients, seed)):
                log.warning("%s: %d generated images were missing and were drawn again", root, lost)
            return
        if root.exists() and not (root / SEAL).exists():
            raise InputError(f"data.root={root}: holds files that were not generated; name a new folder")
        draft = root.with_name(f".{root.name}.tmp")
        shutil.rmtree(draft, ignore_errors=True)
        for patient in draw_patients(patients, seed):
            _write(draft, patient)
        (draft / SEAL).write_text(json.dumps(recipe), encoding="utf-8")
        shutil.rmtree(root, ignore_errors=True)
        os.replace(draft, root)


def draw_patients(count: int, seed: int) -> Iterator[Patient]:
    """Draw patients; each split gets at least two of every class."""
    rng = np.random.default_rng([seed, 0])
    splits = [name for name, share in SPLIT_SHARES.items() for _ in range(max(4, round(share * count)))]
    for number, split in enumerate(splits):
        sick = number % 2 == 0 if split != "train" else rng.random() < PNEUMONIA_SHARE
        subtype = str(rng.choice(["bacteria", "virus"])) if sick else "normal"
        name = f"person{number + 1}" if sick else f"{rng.choice(['IM', 'NORMAL2-IM'])}-{number + 1:04d}"
        yield Patient(name, subtype, split, int(rng.integers(2**31)), int(rng.integers(1, 4)))


def draw(patient: Patient, number: int) -> Vector:
    """Draw one image of a patient: (H, W) in [0, 1]; sizes differ from image to image."""
    body = np.random.default_rng(patient.seed)
    shot = np.random.default_rng([patient.seed, number])
    height, width = int(shot.integers(140, 240)), int(shot.integers(160, 300))
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    x = x + shot.normal(0, 0.02)
    y = y + shot.normal(0, 0.02)
    image = 0.75 - 0.5 * np.clip(np.abs(x - 0.5) - 0.38, 0, 1) * 4
    spread, tall = body.uniform(0.12, 0.15), body.uniform(0.28, 0.34)
    lungs = sum(np.exp(-((((x - c) / spread) ** 2 + ((y - 0.5) / tall) ** 2) ** 3)) for c in (0.29, 0.71))
    image = image - 0.5 * lungs
    image += 0.25 * np.exp(-(((x - 0.5) / 0.045) ** 2))  # the spine
    image += 0.25 * np.exp(-(((x - 0.57) / 0.11) ** 2 + ((y - 0.65) / 0.16) ** 2))  # the heart
    image += 0.05 * lungs * np.sin(2 * np.pi * (9 * y + body.uniform(1, 2) * np.abs(x - 0.5)))  # the ribs
    image += lungs * _opacities(body, patient.subtype, x, y)
    image += _texture(body, 9, (width, height)) + _texture(shot, 16, (width, height))
    image = shot.uniform(0.8, 1.1) * np.clip(image, 0, 1) ** shot.uniform(0.85, 1.2)
    return np.asarray(np.clip(image + shot.normal(0, 0.02, image.shape), 0, 1), np.float64)


def _texture(rng: np.random.Generator, waves: int, size: tuple[int, int]) -> Vector:
    """Draw soft tissue: smooth noise with so many waves across, so that no two images look the same."""
    coarse = Image.fromarray(rng.normal(0, 0.07, (waves, waves)).astype(np.float32))
    return np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float64)


def _opacities(rng: np.random.Generator, subtype: str, x: Vector, y: Vector) -> Vector:
    patches, strength, size = {"normal": (0, 0.0, 0.0), "bacteria": (2, 0.45, 0.07), "virus": (9, 0.22, 0.045)}[subtype]
    total = np.zeros_like(x)
    for _ in range(patches):
        centre_x, centre_y = rng.choice([0.29, 0.71]) + rng.normal(0, 0.05), rng.uniform(0.3, 0.75)
        total += strength * np.exp(-(((x - centre_x) / size) ** 2 + ((y - centre_y) / (1.4 * size)) ** 2))
    return total


def _write(root: Path, patient: Patient) -> int:
    """Write the images of a patient that are not there; returns how many."""
    written = 0
    folder = root / patient.split / ("NORMAL" if patient.subtype == "normal" else "PNEUMONIA")
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(patient.images):
        middle = "" if patient.subtype == "normal" else f"_{patient.subtype}"
        last = f"-{number + 1:04d}" if patient.subtype == "normal" else f"_{number + 1}"
        if (path := folder / f"{patient.name}{middle}{last}.jpeg").exists():
            continue
        image = Image.fromarray((draw(patient, number) * 255).astype(np.uint8))
        if (patient.seed + number) % 4 == 0:
            image = image.convert("RGB")
        image.save(path, quality=90)
        written += 1
    return written
