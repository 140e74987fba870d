"""Scan a folder or a CSV into the table of records: one row for each image file."""

import codecs
import hashlib
import logging
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from xray_pneumonia.data.files import is_hidden, printable, stamp_of, walk
from xray_pneumonia.errors import InputError, nearest
from xray_pneumonia.types import CLASSES

SPLITS = ("train", "val", "test")
LAYOUT = f"{'|'.join(SPLITS)}/{'|'.join(CLASSES)}"
CSV_COLUMNS = ("path", "label", "patient", "split")
MASKS = {"mask", "masks", "segmentation", "segmentations", "lung_masks", "annotations"}
NO_PATIENT = {"", "nan", "none", "null", "na", "n/a"}
NUMBER = re.compile(r"0*(\d+)(?:\.0*)?")
SHOWN = 5  # pairs of patients that look alike
log = logging.getLogger(__name__)
PATIENT = re.compile(r"^(person\d+)_(bacteria|virus)_|^((?:NORMAL2-)?IM-\d+)-")


def scan(root: str | Path, *, follow_links: bool = False) -> pd.DataFrame:
    """List the image files below `root`, sorted by id, without opening any of them.

    Args:
        root: a folder with `train|val|test/NORMAL|PNEUMONIA`, or a CSV file (commas, semicolons or tabs) with the
            columns path (relative to the CSV's folder), label (0, 1 or the class name), patient and split.
        follow_links: read files behind links that lead out of the folder, too.

    Returns:
        Columns `id`, `path`, `label`, `class_name`, `patient`, `subtype`, `split`, `bytes` and `stamp` (what the file
        system knows of the file: it changes when the file does).

    Raises:
        InputError: the folder, the classes or the columns are not as expected.
    """
    root = Path(root)
    if not root.exists():
        raise InputError(
            f"data.root={root}: no such folder; fetch the public X-rays with `xray download`, name a folder "
            "with data.root=DIR, or try generated X-rays: `xray train data=synthetic`"
        )
    rows = list(_csv_rows(root) if root.is_file() else _folder_rows(_unnest(root)))
    if not rows:
        raise InputError(f"data.root={root}: no images; expected files in {LAYOUT}")
    return _table(rows, follow_links=follow_links)


def scan_external(root: str | Path) -> pd.DataFrame:
    """List all images of another hospital's folder as one split, `external`.

    Args:
        root: a folder with `NORMAL|PNEUMONIA`, one in the public layout, or a CSV (see `scan`); whatever its
            splits are called, all of it is external.

    Raises:
        InputError: the folder, the classes or the columns are not as expected.
    """
    root = Path(root)
    inner = _unnest(root) if root.is_dir() else root
    if not root.exists() or root.is_file() or any((inner / split).is_dir() for split in SPLITS):
        return scan(root).assign(split="external")
    cure = f"rename them, or describe the files in a CSV with the columns {', '.join(CSV_COLUMNS)}"
    rows = list(_class_rows(root, root, split="external", name=f"data.root={root}", cure=cure))
    if not rows:
        raise InputError(f"data.root={root}: no images in {' and '.join(CLASSES)}")
    return _table(rows)


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


def _table(rows: list[dict[str, object]], *, follow_links: bool = False) -> pd.DataFrame:
    rows.sort(key=lambda row: str(row["id"]))
    places = [(row.pop("path"), row.pop("outside")) for row in rows]
    paths = [path if follow_links or not outside else "" for path, outside in places]
    table = pd.DataFrame(rows)
    table["path"] = pd.Series(paths, dtype=object)  # a name may hold bytes that are no text
    table["class_name"] = [CLASSES[label] for label in table["label"]]
    return table


def _unnest(root: Path) -> Path:
    """Step into `chest_xray/chest_xray` when the splits lie one level deeper; never count them twice."""
    if any((root / split).is_dir() for split in SPLITS):
        return root
    inner = [folder for folder in _folders(root) if any((folder / split).is_dir() for split in SPLITS)]
    return inner[0] if len(inner) == 1 else root


def _folder_rows(root: Path) -> Iterator[dict[str, object]]:
    splits = [name for name in SPLITS if (root / name).is_dir()]
    if not splits:
        names = sorted(folder.name for folder in _folders(root))
        cure = "; put both below `train` to train on them, or judge a model on them with split=external"
        raise InputError(
            f"data.root={root}: no images: no folder `train`; expected {LAYOUT}, "
            f"found {', '.join(names) or 'no folders'}{cure if names == sorted(CLASSES) else ''}"
        )
    for split in splits:
        folder = root / split
        yield from _class_rows(root, folder, split=split, name=str(folder), cure="rename or remove what differs")


def _class_rows(root: Path, folder: Path, *, split: str, name: str, cure: str) -> Iterator[dict[str, object]]:
    """Describe the files in the class folders of a folder."""
    found = sorted(inner.name for inner in _folders(folder))
    if found != sorted(CLASSES):
        raise InputError(
            f"{name}: expected the class folders {' and '.join(CLASSES)}, "
            f"found {', '.join(map(repr, found)) or 'none'}; {cure}"
        )
    for label, class_name in enumerate(CLASSES):
        for path in _files(folder / class_name):
            yield _row(root, path, label=label, split=split)


def _files(folder: Path) -> Iterator[Path]:
    """List the files of a class, all of them or none.

    Raises:
        InputError: some of them lie in a folder that cannot be read, or are masks.
    """
    try:
        masks = [inner.name for inner in _folders(folder) if inner.name.casefold() in MASKS]
        if masks:
            raise InputError(
                f"{folder}: holds a folder {masks[0]!r}; masks are no X-rays: move it away, or list the X-rays in a CSV"
            )
        for path in map(Path, walk(folder)):
            if path.is_dir() and not path.is_symlink():
                raise PermissionError(0, "no permission, or too long a path", str(path))
            yield path
    except OSError as error:
        raise InputError(
            f"{error.filename}: is a folder that cannot be read ({error.strerror}); its images would be "
            "left out; give yourself the right to read it, or move it out of the data"
        ) from error


def _csv_rows(csv: Path) -> Iterator[dict[str, object]]:
    labels = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, **{name.casefold(): label for label, name in enumerate(CLASSES)}}
    seen: dict[object, tuple[int, dict[str, object]]] = {}
    for line, cells in enumerate(_csv_table(csv).to_dict("records"), start=2):
        row = {name: unicodedata.normalize("NFC", str(cells[name])).strip() for name in CSV_COLUMNS[1:]}
        row |= {"path": cells["path"]}
        label, split = labels.get(row["label"].casefold()), row["split"].casefold()
        if label is None or split not in SPLITS or row["patient"].casefold() in NO_PATIENT:
            wrong = row["label"].upper() if label is None else split
            near = nearest(wrong, CLASSES if label is None else SPLITS) or nearest(wrong[:3], SPLITS)
            raise InputError(
                f"{csv}, line {line}: label={row['label']!r} split={row['split']!r} patient={row['patient']!r}; "
                f"label is 0, 1, {' or '.join(CLASSES)}, split one of {', '.join(SPLITS)}, patient not empty{near}"
            )
        if not row["path"].strip() or "\0" in row["path"]:
            raise InputError(f"{csv}, line {line}: path={row['path']!r} names no file")
        if "\\" in row["path"] and not (csv.parent / row["path"]).exists():
            raise InputError(f"{csv}, line {line}: path={row['path']!r} has a backslash; write / between folders")
        found = _row(csv.parent, csv.parent / row["path"], label=label, split=split)
        if found["outside"] and str(found["id"]).startswith(".."):
            raise InputError(
                f"{csv}, line {line}: path={row['path']!r} lies outside the folder of the CSV, and nothing outside of "
                "it is read; put the CSV into a folder that holds all its files"
            )
        found |= {"patient": row["patient"]}
        first, before = seen.setdefault(found["id"], (line, found))
        if first == line:
            yield found
        elif before == found:
            log.warning("%s: names %r twice, in the equal lines %d and %d; one counts", csv, found["id"], first, line)
        else:
            raise InputError(f"{csv}: names {found['id']!r} twice, in the lines {first} and {line}; remove one")
    _warn_of_look_alikes({str(row["patient"]) for _, row in seen.values()}, csv)


def _warn_of_look_alikes(patients: set[str], csv: Path) -> None:
    """Name patients that only case, leading zeros or a decimal point tell apart: they may be one, on two sides."""
    alike: dict[str, list[str]] = {}
    for patient in sorted(patients):
        number = NUMBER.fullmatch(patient)
        alike.setdefault(number.group(1) if number else patient.casefold(), []).append(patient)
    if pairs := [names for names in alike.values() if len(names) > 1]:
        shown = "; ".join(" and ".join(map(repr, names)) for names in pairs[:SHOWN])
        log.warning("%s: %d patients have several names, or several patients look alike: %s", csv, len(pairs), shown)


def _csv_table(csv: Path) -> pd.DataFrame:
    """Read a table whose columns are separated by what its header has most of, their names in any case."""
    with csv.open("rb") as raw:
        if raw.read(2) in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
            raise InputError(f"data.root={csv}: is written in UTF-16; save it as UTF-8")
    try:
        with csv.open(encoding="utf-8-sig") as file:
            separator = max(",;\t", key=file.readline().count)
        table = pd.read_csv(
            csv, sep=separator, dtype=str, keep_default_na=False, compression=None, encoding="utf-8-sig"
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(
            f"data.root={csv}: is neither a folder of images nor a CSV table in UTF-8 ({error}); unpack an archive and "
            "name its folder, or the CSV that lists the images"
        ) from error
    table.columns = pd.Index([str(name).strip().lower() for name in table.columns])
    if any(list(table.columns).count(column) != 1 for column in CSV_COLUMNS):
        raise InputError(
            f"{csv}: needs each of the columns {', '.join(CSV_COLUMNS)} once, found {', '.join(table.columns)}"
        )
    if table.empty:
        raise InputError(f"{csv}: holds a header and no rows; write one line for each image")
    return table


def _row(root: Path, path: Path, *, label: int, split: str) -> dict[str, object]:
    """Describe one file by its name and by what the file system says, without opening it."""
    name = PATIENT.match(path.name)
    kind = (name.group(2) if name else None) or "unknown"
    size, stamp = stamp_of(path)
    relative = os.path.relpath(path, root)
    inside = os.path.realpath(path).startswith(os.path.realpath(root) + os.sep)
    return {
        "id": printable(relative),
        "path": str(path),
        "outside": not inside,  # a link that leads out of the data
        "label": label,
        "patient": (name.group(1) or name.group(3)) if name else printable(path.stem),
        "subtype": "normal" if label == 0 else kind,
        "split": split,
        "bytes": size,
        "stamp": stamp,
    }


def _folders(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name)]
