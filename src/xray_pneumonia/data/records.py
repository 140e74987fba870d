"""Scan a folder or a CSV into the table of records: one row for each image file."""

import hashlib
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from xray_pneumonia.data.classes import PUBLIC, Question, counted
from xray_pneumonia.data.files import all_or_none, is_hidden, printable, stamp_of, walk_films
from xray_pneumonia.data.patients import COLUMN, NO_PATIENT, Rule, by_scheme, rule_of, warn_of_look_alikes
from xray_pneumonia.data.tables import read_table
from xray_pneumonia.errors import InputError, nearest
from xray_pneumonia.types import CLASSES

SPLITS = ("train", "val", "test")
LAYOUT = f"{'|'.join(SPLITS)}/{'|'.join(CLASSES)}"
CSV_COLUMNS = ("path", "label", "patient", "split")
NEEDED = CSV_COLUMNS[:2]
PARTS = "|"  # between the findings of one label in a CSV
MASKS = {"mask", "masks", "segmentation", "segmentations", "lung_masks", "annotations"}
SHOWN = 10  # names of classes in a message
NAME_YOURS = "name yours with data.positive=[...] data.negative=[...]"
log = logging.getLogger(__name__)
Row = dict[str, Any]


@all_or_none()
def scan(
    root: str | Path, *, question: Question = PUBLIC, patient: str | None = None, follow_links: bool = False
) -> pd.DataFrame:
    """List the image files below `root`, sorted by id; none is opened but for `patient="dicom"`.

    Args:
        root: a folder with `train|val|test/CLASS`, or with CLASS alone, or a CSV file (commas, semicolons or tabs) with
            the columns path (relative to the CSV's folder), label (0, 1, a class name, or several joined by |) and,
            where there are, patient and split.
        question: which classes are label 0 and 1; images of other classes are left out and counted.
        patient: how patients are named (see `patients.rule_of`).
        follow_links: read files behind links that lead out of the folder, too.

    Returns:
        Columns `id`, `path`, `label`, `class_name`, `patient`, `subtype`, `split`, `bytes` and `stamp` (what the file
        system knows of the file: it changes when the file does). Its `attrs["left_out"]` counts what was left out.

    Raises:
        InputError: the folder, the classes or the columns are not as expected, or a folder cannot be read.
    """
    root = Path(root)
    if not (root.is_dir() or root.is_file()):
        raise InputError(
            f"data.root={root}: no such folder; fetch the public X-rays with `xray download`, name a folder "
            "with data.root=DIR, or try generated X-rays: `xray train data=synthetic`"
        )
    if root.is_file():
        return table_of(list(_csv_rows(root, question, patient, follow_links)), root, question)
    inner = unnest(root)
    return table_of(list(_folder_rows(inner, question, _folder_rule(patient), follow_links)), inner, question)


@all_or_none()
def scan_external(root: str | Path, *, question: Question = PUBLIC, patient: str | None = None) -> pd.DataFrame:
    """List all images of another hospital's folder as one split, `external`, whatever its splits are called.

    Raises:
        InputError: the folder, the classes or the columns are not as expected, or a folder cannot be read.
    """
    root = Path(root)
    inner = unnest(root) if root.is_dir() else root
    if not root.exists() or root.is_file() or any((inner / split).is_dir() for split in SPLITS):
        return scan(root, question=question, patient=patient).assign(split="external")
    rows = list(_class_rows(root, root, question, _folder_rule(patient), False, split="external"))
    return table_of(rows, root, question)


def fingerprint(records: pd.DataFrame) -> str:
    """Hash ids, contents, labels and splits of the records: the identity of the data, 64 hex digits."""
    digest = hashlib.sha256()
    for row in records[["id", "sha256", "label", "split"]].itertuples(index=False):
        digest.update("\x1f".join(map(str, row)).encode() + b"\x1e")
    return digest.hexdigest()


def sample_by_patient(records: pd.DataFrame, max_images: int, seed: int) -> pd.DataFrame:
    """Keep whole patients, drawn at random, until the next one would exceed `max_images` of a class.

    Each split and class keeps its share of the images, and one patient at least.
    """
    shuffled = records.sample(frac=1, random_state=seed)
    chosen: list[str] = []
    share = max_images / len(records)
    for _, stratum in shuffled.groupby(["split", "label"]):
        sizes = stratum.groupby("patient", sort=False).size().cumsum()
        chosen += sizes[sizes <= max(sizes.iloc[0], share * len(stratum))].index.tolist()
    return records[records["patient"].isin(chosen)].reset_index(drop=True)


def table_of(rows: list[Row], root: Path, question: Question) -> pd.DataFrame:
    """Keep the rows that have a label, and count the others by their class."""
    if not rows:
        raise InputError(f"data.root={root}: no images; expected files in {LAYOUT}, or folders called as your classes")
    left_out = Counter(str(row["class_name"]) for row in rows if row["label"] is None)
    used = {row.pop("matched") for row in rows}
    rows = sorted((row for row in rows if row["label"] is not None), key=lambda row: str(row["id"]))
    found = {row["label"] for row in rows}
    if not found or (len(found) < 2 and (left_out or root.is_dir())):
        missing = " and ".join(name for label, name in enumerate(question.names) if label not in found)
        there = Counter(str(row["class_name"]) for row in rows) + left_out
        names = ", ".join(sorted(repr(name) for name, _ in there.most_common(SHOWN)))
        raise InputError(
            f"data.root={root}: no images of {missing}; expected the classes {' and '.join(question.names)}, found "
            f"{names}; {NAME_YOURS}"
        )
    if unused := question.unused(used, left_out, where=f"data.root={root}"):
        log.warning("%s: no image is called %s", root, " or ".join(unused))
    if left_out:
        log.warning(
            "%s: %d images are neither %s and are left out: %s",
            root, left_out.total(), " nor ".join(question.names), counted(left_out),
        )  # fmt: skip
    paths = [row.pop("path") for row in rows]
    table = pd.DataFrame(rows).astype({"label": int})
    table["path"] = pd.Series(paths, dtype=object)  # a name may hold bytes that are no text
    table["class_name"] = table.pop("class_name")
    table.attrs["left_out"] = dict(left_out)
    return table


def unnest(root: Path) -> Path:
    """Step into `chest_xray/chest_xray` when the splits lie one level deeper; never count them twice."""
    if any((root / split).is_dir() for split in SPLITS):
        return root
    inner = [folder for folder in _folders(root) if any((folder / split).is_dir() for split in SPLITS)]
    return inner[0] if len(inner) == 1 else root


def _folder_rule(patient: str | None) -> Rule:
    if patient == COLUMN:
        raise InputError(f"data.patient={COLUMN}: a folder has no columns; name a CSV with data.root=CSV")
    return rule_of(patient)


def _folder_rows(root: Path, question: Question, rule: Rule, links: bool) -> Iterator[Row]:
    splits = [name for name in SPLITS if (root / name).is_dir()]
    names = sorted(folder.name for folder in _folders(root))
    if not splits and question.answered_by(names) and names != sorted(CLASSES):  # those may be a published split
        log.warning("data.root=%s: has no folder `train`, so all of its images are for training and validation", root)
        yield from _class_rows(root, root, question, rule, links, split="train")
        return
    if not splits:
        cure = f" but not both classes, {' and '.join(question.names)}; {NAME_YOURS}" if names else ""
        if names == sorted(CLASSES):
            cure = "; put both below `train` to train on them, or judge a model on them with split=external"
        raise InputError(
            f"data.root={root}: no images: no folder `train`; expected {LAYOUT}, "
            f"found {', '.join(names) or 'no folders'}{cure}"
        )
    for split in splits:
        yield from _class_rows(root, root / split, question, rule, links, split=split)


def _class_rows(root: Path, folder: Path, question: Question, rule: Rule, links: bool, *, split: str) -> Iterator[Row]:
    """Describe the files in the class folders of a folder."""
    for inner in sorted(_folders(folder)):
        if doubt := question.doubt(inner.name):
            raise InputError(f"{folder}: has a folder {inner.name!r}; {doubt}; rename or move it")
        for path in _files(inner):
            yield row_of(root, path, question, [inner.name], links, split=split, rule=rule)


def _files(folder: Path) -> Iterator[Path]:
    """List the files of a class; masks are refused."""
    masks = [inner.name for inner in _folders(folder) if inner.name.casefold() in MASKS]
    if masks:
        raise InputError(
            f"{folder}: holds a folder {masks[0]!r}; masks are no X-rays: move it away, or list the X-rays in a CSV"
        )
    return map(Path, walk_films(folder))


def _csv_rows(csv: Path, question: Question, patient: str | None, links: bool) -> Iterator[Row]:
    table, rule = _csv_table(csv), rule_of(patient)
    by_column = "patient" in table and patient in {None, COLUMN}
    if patient == COLUMN and not by_column:
        raise InputError(f"data.patient={COLUMN}: {csv} has no column patient, but {', '.join(table.columns)}")
    seen: dict[object, tuple[int, Row]] = {}
    for line, cells in zip(table.index, table.to_dict("records"), strict=True):
        row = {name: unicodedata.normalize("NFC", str(cells.get(name, ""))).strip() for name in CSV_COLUMNS[1:]}
        row["split"] = row["split"].casefold() if "split" in table else "train"
        names = [name.strip() for name in row["label"].split(PARTS)]
        doubt = question.match(names) is None and next(filter(None, map(question.doubt, names)), "")
        label, split, whose = row["label"], row["split"], row["patient"]
        near = "" if split in SPLITS else nearest(split, SPLITS) or nearest(split[:3], SPLITS)
        wrong = {
            f"label={label!r}: {doubt or 'write a class'}": doubt or not label,
            f"split={split!r}: should be one of {', '.join(SPLITS)}{near}": split not in SPLITS,
            f"patient={whose!r}: write whose film it is": by_column and NO_PATIENT.fullmatch(whose.casefold()),
        }
        if any(wrong.values()):
            raise InputError(f"{csv}, line {line}: {'; '.join(words for words, so in wrong.items() if so)}")
        path = _csv_path(csv, line, cells["path"])
        found = row_of(csv.parent, path, question, names, links, split=row["split"], rule=rule)
        if not found["path"] and found["id"].startswith(".."):
            raise InputError(
                f"{csv}, line {line}: path={cells['path']!r} lies outside the folder of the CSV, and nothing "
                "outside of it is read; put the CSV into a folder that holds all its files"
            )
        found |= {"patient": row["patient"]} if by_column else {}
        first, before = seen.setdefault(found["id"], (line, found))
        if first == line:
            yield found
        elif before == found:
            log.warning("%s: names %r twice, in the equal lines %d and %d; one counts", csv, found["id"], first, line)
        else:
            raise InputError(f"{csv}: names {found['id']!r} twice, in the lines {first} and {line}; remove one")
    warn_of_look_alikes({str(row["patient"]) for _, row in seen.values()}, csv)


def _csv_path(csv: Path, line: int, path: str) -> Path:
    """Find the file that a cell names, whichever way its letters are composed and whatever blanks surround it."""
    if not path.strip():
        raise InputError(f"{csv}, line {line}: path={path!r} names no file")
    written = [path, *(unicodedata.normalize(form, path.strip()) for form in ("NFC", "NFD"))]
    found = next((csv.parent / each for each in written if (csv.parent / each).exists()), csv.parent / path)
    if "\\" in path and not found.exists():
        raise InputError(f"{csv}, line {line}: path={path!r} has a backslash; write / between folders")
    return found


def _csv_table(csv: Path) -> pd.DataFrame:
    table = read_table(csv)
    counts = {column: list(table.columns).count(column) for column in CSV_COLUMNS}
    if max(counts.values()) > 1 or not all(counts[column] for column in NEEDED):
        raise InputError(
            f"{csv}: needs the columns {' and '.join(NEEDED)} once, patient and split at most once, found "
            f"{', '.join(table.columns)}"
        )
    return table


def row_of(root: Path, path: Path, question: Question, names: list[str], links: bool, *, split: str, rule: Rule) -> Row:
    """Describe one file by its names and by what the file system says; `label` is None where no class is asked for."""
    size, stamp = stamp_of(path)
    relative = printable(os.path.relpath(path, root))
    inside = os.path.realpath(path).startswith(os.path.realpath(root) + os.sep)
    known = str(path) if inside or (links and not relative.startswith("..")) else ""  # else it leads out of the data
    kind = by_scheme(path.name)[1]
    label, matched = question.match([*names, kind]) or (None, "")
    subtype = kind or (matched if not question.public else "unknown")
    return {
        "id": relative,
        "path": known,
        "label": label,
        "class_name": PARTS.join(names) if label is None else question.names[label],
        "matched": matched,  # the listed name that gave the label
        "patient": rule(known, relative),
        "subtype": "normal" if question.public and label == 0 else subtype,
        "split": split,
        "bytes": size,
        "stamp": stamp,
    }


def _folders(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name)]
