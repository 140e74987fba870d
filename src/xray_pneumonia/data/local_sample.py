"""Read a hospital's own labelled films: a folder, a CSV, or a folder and the `labels.csv` of readers."""

import logging
from pathlib import Path

import pandas as pd

from xray_pneumonia.data.classes import PUBLIC, Question
from xray_pneumonia.data.files import all_or_none, walk_all
from xray_pneumonia.data.patients import rule_of
from xray_pneumonia.data.records import SPLITS, row_of, scan, scan_external, table_of, unnest
from xray_pneumonia.data.tables import read_table
from xray_pneumonia.errors import InputError
from xray_pneumonia.whole_files import file_sha256

UNSURE = "unsure"  # an opinion that labels nothing
log = logging.getLogger(__name__)


@all_or_none()
def scan_local(
    root: str | Path, *, question: Question = PUBLIC, patient: str | None = None, labels: str | None = None
) -> pd.DataFrame:
    """List the labelled films below `root` as one split, `external`; those of a test split are left out.

    Args:
        root: as for `records.scan_external`; with `labels` any folder of films, however deep.
        question: of the model.
        patient: how patients are named.
        labels: what `xray serve keep=DIR` wrote: the films with these hashes get these labels.

    Raises:
        InputError: the folder, the classes or the columns are not as expected, or something cannot be read.
    """
    root = Path(root)
    if labels is not None:
        return _scan_labelled(root, read_labels(Path(labels).expanduser()), question, patient, labels)
    inner = unnest(root) if root.is_dir() else root
    if not root.is_file() and not any((inner / split).is_dir() for split in SPLITS):
        return scan_external(root, question=question, patient=patient)
    found = scan(root, question=question, patient=patient)
    if tests := int(found["split"].eq("test").sum()):
        log.warning("data.root=%s: %d films of its test split are left out: nothing is fitted to a test", root, tests)
    return found[found["split"].ne("test")].reset_index(drop=True).assign(split="external")


def read_labels(path: Path) -> dict[str, str]:
    """Read the last label of each film by its hash; opinions without a label, or unsure ones, give none."""
    if not path.is_file():
        raise InputError(f"labels={path}: no such file; name the labels.csv that `xray serve keep=DIR` writes")
    table = read_table(path, key="labels")
    if missing := [name for name in ("sha256", "label") if name not in table]:
        raise InputError(f"labels={path}: lacks the column {missing[0]}; it has {', '.join(table.columns)}")
    told = table[table["label"].fillna("").str.strip().ne("")]
    told = told[told["opinion"].ne(UNSURE)] if "opinion" in told else told
    label = told["label"].str.strip().str.removeprefix("'")
    films = told["sha256"].str.casefold()
    if contested := int(label.groupby(films).nunique().gt(1).sum()):
        log.warning("labels=%s: %d films were given several labels; the last one counts", path, contested)
    return dict(zip(films, label, strict=True))


def _scan_labelled(
    root: Path, known: dict[str, str], question: Question, patient: str | None, labels: str
) -> pd.DataFrame:
    if not root.is_dir():
        raise InputError(f"data.root={root}: no such folder; name the one that holds the films of labels={labels}")
    paths = [Path(path) for path in walk_all(root)]
    hashes = [file_sha256(path) if path.is_file() else "" for path in paths]
    rule, found = rule_of(patient), dict(zip(hashes, paths, strict=True))
    rows = [
        row_of(root, found[sha256], question, [label], False, split="external", rule=rule)
        for sha256, label in known.items()
        if sha256 in found
    ]
    if not rows:
        raise InputError(f"labels={labels}: none of its {len(known)} labelled films is below data.root={root}")
    if lost := len(known) - len(rows):
        log.warning("labels=%s: %d of its %d films are not below %s", labels, lost, len(known), root)
    return table_of(rows, root, question)
