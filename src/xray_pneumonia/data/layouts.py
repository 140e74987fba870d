"""Read the published layouts of other data sets: path, label, patient and split of each film, or why it is left out.

Each layout is one function, and its rule in words stands in `LAYOUTS`. Labels are the published findings joined by "|";
pneumonia is called PNEUMONIA and a film without a finding NORMAL, so that the default question finds them.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from xray_pneumonia.data.classes import UNCERTAIN
from xray_pneumonia.data.files import all_or_none, walk_all
from xray_pneumonia.data.tables import read_table
from xray_pneumonia.errors import InputError
from xray_pneumonia.types import CLASSES

NORMAL, PNEUMONIA = CLASSES
IMAGES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
COLUMNS = ("path", "label", "patient", "split", "reason")
ASIDE = {"support devices"}  # a tube or a pacemaker beside "no finding" is no finding of a lung
CHEXPERT = [
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
]  # fmt: skip
Film = dict[str, str]


@dataclass(frozen=True)
class Layout:
    """How a published data set is read, and the rule in words."""

    read: Callable[[Path], Iterable[Film]]
    rule: str


def film(path: str, label: str, patient: str = "", split: str = "train", reason: str = "") -> Film:
    """Describe a film; `reason` says why it is left out."""
    return dict(zip(COLUMNS, (path, label, patient, split, reason), strict=True))


@all_or_none()
def index(layout: str, source: Path) -> pd.DataFrame:
    """List the films of a published data set, one row each, with the columns `COLUMNS`; paths are relative to it.

    Raises:
        InputError: a file of the layout is missing, a folder cannot be read, or no film that it lists is there.
    """
    table = pd.DataFrame(list(LAYOUTS[layout].read(source)), columns=list(COLUMNS))
    table.loc[table["label"].eq("") & table["reason"].eq(""), "reason"] = "no label, or a finding beside none"
    gone = ~table["path"].map(lambda path: (source / path).is_file()).astype(bool)
    table.loc[gone & table["reason"].eq(""), "reason"] = "the file is not there"
    if not table["reason"].eq("").any():
        why = ", ".join(f"{count} {reason}" for reason, count in table["reason"].value_counts().items())
        raise InputError(f"source={source}: layout={layout} finds no film there ({why or 'no rows'})")
    if table.loc[table["reason"].eq(""), "patient"].eq("").all():
        table = table.drop(columns="patient")
    return table


def findings(positive: Iterable[str], uncertain: Iterable[str] = ()) -> str:
    """Join findings to a label: a film is NORMAL only where nothing else is found or suspected of it.

    An uncertain finding is written with a question mark, which no class is called; uncertain pneumonia leaves the film
    out, since a question about pneumonia can count it on neither side.
    """
    names = [PNEUMONIA if name.casefold() == "pneumonia" else name for name in positive]
    doubted = [f"{name}{UNCERTAIN}" for name in uncertain]
    healthy = [name for name in names if name.casefold() in {"no finding", "normal"}]
    others = [name for name in names if name not in healthy and name.casefold() not in ASIDE]
    if healthy:
        return "" if others or doubted else NORMAL
    return "|".join([*names, *doubted])


def _nih(source: Path) -> Iterable[Film]:
    places = _places(source)
    test = set(_lines(source, "test_list.txt"))
    for row in _rows(source, "Data_Entry_2017*.csv"):
        name = row["image index"]
        label = findings(row["finding labels"].split("|"))
        yield film(places.get(name, name), label, row["patient id"], "test" if name in test else "train")


def _rsna(source: Path) -> Iterable[Film]:
    """Read one film for each patientId, however many boxes it has."""
    places = _places(source)
    named = {"Normal": NORMAL, "Lung Opacity": PNEUMONIA}
    boxed = {row["patientid"] for row in _rows(source, "stage_2_train_labels.csv") if row["target"] == "1"}
    classes = {row["patientid"]: row["class"] for row in _rows(source, "stage_2_detailed_class_info.csv")}
    for name, kind in classes.items():
        against = (kind == "Lung Opacity") != (name in boxed)
        reason = "class and boxes contradict each other" if against else ""
        yield film(places.get(f"{name}.dcm", f"{name}.dcm"), named.get(kind, kind), reason=reason)


def _chexpert(source: Path) -> Iterable[Film]:
    for name, split in (("train.csv", "train"), ("valid.csv", "val"), ("test.csv", "test")):
        for row in _rows(source, name, needed=split == "train"):
            path = row["path"].partition("/")[2] if not (source / row["path"]).exists() else row["path"]
            patient = next((part for part in path.split("/") if part.startswith("patient")), "")
            reason = "" if row.get("frontal/lateral", "Frontal") == "Frontal" else "no frontal view"
            yield _uncertain(row, film(path, "", patient, split, reason))


def _mimic(source: Path) -> Iterable[Film]:
    labels = {row["study_id"]: row for row in _rows(source, "mimic-cxr-2.0.0-chexpert.csv*")}
    splits = {row["dicom_id"]: row["split"] for row in _rows(source, "mimic-cxr-2.0.0-split.csv*")}
    for row in _rows(source, "mimic-cxr-2.0.0-metadata.csv*"):
        name, patient, study = row["dicom_id"], f"p{row['subject_id']}", f"s{row['study_id']}"
        path = f"files/{patient[:3]}/{patient}/{study}/{name}.jpg"
        reason = "" if row["viewposition"] in {"AP", "PA"} else "no frontal view"
        split = splits.get(name, "train").replace("validate", "val")
        yield _uncertain(labels.get(row["study_id"], {}), film(path, "", patient, split, reason))


def _uncertain(row: dict[str, str], found: Film) -> Film:
    """Add the labels of the CheXpert labeller: 1 positive, -1 uncertain, 0 negative, empty not mentioned."""
    value = {name: _number(row.get(name.lower(), "")) for name in ["No Finding", *CHEXPERT]}
    uncertain = [name for name, one in value.items() if one == -1]
    reason = found["reason"] or ("pneumonia is uncertain" if "Pneumonia" in uncertain else "")
    return found | {"label": findings([name for name, one in value.items() if one == 1], uncertain), "reason": reason}


def _padchest(source: Path) -> Iterable[Film]:
    places = _places(source)
    for row in _rows(source, "PADCHEST_chest_x_ray_images_labels*.csv*"):
        name = row["imageid"]
        labels = [one.strip() for one in re.findall(r"['\"]([^'\"]*)['\"]", row["labels"])]
        reason = "" if row["projection"] in {"PA", "AP"} else "no upright frontal view"
        reason = reason or ("excluded or suboptimal film" if {"exclude", "suboptimal study"} & set(labels) else "")
        path = places.get(name, f"{row.get('imagedir', '')}/{name}")
        label = findings(one for one in labels if one not in {"", "unchanged"})
        yield film(path, label, row["patientid"], reason=reason)


def _vindr(source: Path) -> Iterable[Film]:
    """Count the radiologists: a finding of most of those who read a film is one, of fewer an uncertain one."""
    places = _places(source)
    for split in ("train", "test"):
        table = pd.DataFrame(_rows(source, f"image_labels_{split}.csv", needed=split == "train"))
        for name, votes in table.groupby("image_id", sort=False) if len(table) else ():
            named = votes.drop(columns=["image_id", "rad_id"], errors="ignore").astype(float).mean()
            most = [str(one) for one in named[named > 0.5].index]
            fewer = [] if most == ["no finding"] else [str(one) for one in named[(named > 0) & (named <= 0.5)].index]
            reason = "pneumonia is uncertain" if 0 < named.get("pneumonia", 0) <= 0.5 else ""
            path = next((places[each] for each in (f"{name}.dicom", f"{name}.png") if each in places), f"{name}.dicom")
            yield film(path, findings(most, fewer), split=split, reason=reason)


def _pneumoniamnist(source: Path) -> Iterable[Film]:
    """Write the arrays as PNG files beside the archive; the smallest images, of 28 pixels, are enlarged to 56."""
    found = _one(source, "pneumoniamnist*.npz")
    arrays = np.load(found, allow_pickle=False)
    for split in ("train", "val", "test"):
        for number, (pixels, label) in enumerate(
            zip(arrays[f"{split}_images"], arrays[f"{split}_labels"].ravel(), strict=True)
        ):
            path = Path(found.stem, split, CLASSES[int(label)], f"{split}_{number:05d}.png")
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels)
            (image.resize((56, 56), Image.Resampling.NEAREST) if min(image.size) < 32 else image).save(source / path)
            yield film(path.as_posix(), CLASSES[int(label)], split=split)


def _covid_radiography(source: Path) -> Iterable[Film]:
    named = {"Normal": NORMAL, "Viral Pneumonia": f"{PNEUMONIA}|Viral Pneumonia"}
    for kind in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"):
        folder = source / kind / "images"
        if not folder.is_dir():
            raise InputError(f"source={source}: has no folder {kind}/images; layout=covid_radiography has four such")
        for path in map(Path, walk_all(folder)):
            yield film(path.relative_to(source).as_posix(), named.get(kind, kind))


LAYOUTS = {
    "rsna": Layout(
        _rsna,
        "class Lung Opacity is PNEUMONIA, Normal is NORMAL, the third class is its own; boxes of a film are one row; "
        "patientId names a film, so patients are unknown",
    ),
    "nih": Layout(
        _nih, "No Finding is NORMAL, findings are joined; Patient ID is the patient; test_list.txt is the test split"
    ),
    "chexpert": Layout(
        _chexpert,
        "1 is a finding, -1 an uncertain one, 0 and empty none; uncertain pneumonia and lateral films are left out; "
        "the patient stands in the path; valid.csv is the validation split",
    ),
    "padchest": Layout(
        _padchest,
        "labels of the list, normal is NORMAL; PA and AP alone; excluded and suboptimal films are left out; PatientID",
    ),
    "vindr": Layout(
        _vindr,
        "a finding of most of a film's radiologists is one; pneumonia of fewer is uncertain and left out; patients are "
        "unknown",
    ),
    "mimic": Layout(
        _mimic,
        "labels of the study as in chexpert; AP and PA alone; subject_id is the patient; the published splits",
    ),
    "pneumoniamnist": Layout(
        _pneumoniamnist,
        "0 is NORMAL, 1 PNEUMONIA; the arrays become PNG files; patients are unknown; the published splits",
    ),
    "covid_radiography": Layout(
        _covid_radiography,
        "images alone, never masks; Normal is NORMAL, Viral Pneumonia is PNEUMONIA, COVID and Lung_Opacity are their "
        "own; patients are unknown",
    ),
}


def _one(source: Path, pattern: str) -> Path:
    found = sorted(source.rglob(pattern))
    if not found:
        raise InputError(f"source={source}: holds no {pattern}; name the folder of the unpacked data set")
    return found[0]


def _rows(source: Path, pattern: str, *, needed: bool = True) -> list[dict[str, str]]:
    if not needed and not any(source.rglob(pattern)):
        return []
    return read_table(_one(source, pattern)).to_dict("records")  # type: ignore[return-value]


def _lines(source: Path, name: str) -> list[str]:
    return next((path.read_text(encoding="utf-8").split() for path in source.rglob(name)), [])


def _places(source: Path) -> dict[str, str]:
    """Find every image file by its name."""
    return {
        os.path.basename(path): os.path.relpath(path, source)
        for path in walk_all(source)
        if path.casefold().endswith(IMAGES)
    }


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
