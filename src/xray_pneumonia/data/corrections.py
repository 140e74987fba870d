"""Correct labels by a table (`data.corrections=FILE`) that names films by content or id; count both states."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_pneumonia.data.classes import Question, counted
from xray_pneumonia.data.tables import read_table
from xray_pneumonia.errors import InputError
from xray_pneumonia.whole_files import read_regular

EXCLUDE = "exclude"  # in the column label: the film is neither trained nor assessed on
PINNED = re.compile(r"(.+)@([0-9a-f]{64})")  # a file and the SHA-256 of its content, as configs hold them
# Columns that name a film, the first that is filled in, and what they are called in the records. Content comes first:
# a file that was replaced since is not the one that somebody looked at.
KEYS = {"sha256": "sha256", "id": "id", "path": "id"}

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Corrected:
    """What a table of corrections did: counts of labels before and after, and of its rows."""

    name: str
    text: bytes
    before: Counter[str]
    after: Counter[str]
    changed: Counter[str]  # "NORMAL to PNEUMONIA"
    excluded: int
    unchanged: int
    in_test: int
    unknown: int

    @property
    def sha256(self) -> str:
        """The hash of the table, 64 hex digits."""
        return hashlib.sha256(self.text).hexdigest()

    @property
    def films(self) -> int:
        """How many films the table names."""
        return self.changed.total() + self.excluded + self.unchanged

    def __str__(self) -> str:
        """Word it in one sentence: both states, and what lies between them."""
        rest = {
            "excluded": self.excluded,
            "unchanged": self.unchanged,
            "of these in test": self.in_test,
            "rows of no film here": self.unknown,
        }
        parts = [f"{count} {what}" for what, count in rest.items() if count]
        return (
            f"labels as published: {counted(self.before)}; as corrected by {self.name} (sha256 {self.sha256[:12]}): "
            f"{counted(self.after)} ({'; '.join([counted(self.changed) or 'none changed', *parts])})"
        )


def correct(records: pd.DataFrame, pinned: str, question: Question) -> tuple[pd.DataFrame, Corrected]:
    """Correct the labels of records; what is excluded gets the split "".

    Args:
        records: with `id`, `sha256`, `label`, `class_name`, `subtype` and `split`; the index is 0..N-1.
        pinned: `FILE@SHA256`; the table has a column `sha256`, `id` or `path`, and `label`: a class or `exclude`.
        question: which classes are label 0 and 1.

    Returns:
        The records, with the labels as published in the column `published`; and the counts.

    Raises:
        InputError: the file changed since, is no such table, or contradicts itself.
    """
    path, text = _read(pinned)
    verdicts: dict[int, tuple[int, int | None]] = {}  # row -> line of the table, label
    unknown = 0
    for line, rows, label in _lines(path, records, question):
        unknown += not len(rows)
        for row in rows:
            first, before = verdicts.setdefault(row, (line, label))
            if before != label:
                film = records["id"][row]
                raise InputError(f"{path}: gives {film!r} two labels, in the lines {first} and {line}; remove one")
    labels = pd.Series({row: label for row, (_, label) in verdicts.items() if label is not None}, dtype=int)
    after = records.assign(label=labels.reindex(records.index).fillna(records["label"]).astype(int))
    changed = after["label"].ne(records["label"])
    after.loc[changed, "class_name"] = [question.names[label] for label in after.loc[changed, "label"]]
    after.loc[changed, "subtype"] = np.where(after.loc[changed, "label"].eq(0) & question.public, "normal", "unknown")
    excluded = records.index.isin([row for row, (_, label) in verdicts.items() if label is None])
    after["published"], after["split"] = records["label"], after["split"].mask(excluded, "")
    return after, _count(records, after, excluded, verdicts=len(verdicts), unknown=unknown, name=path.name, text=text)


def _count(
    before: pd.DataFrame, after: pd.DataFrame, excluded: Mask, *, verdicts: int, unknown: int, name: str, text: bytes
) -> Corrected:
    changed = after["label"].ne(before["label"])
    return Corrected(
        name,
        text,
        before=Counter(before["class_name"]),
        after=Counter(after.loc[~excluded, "class_name"]),
        changed=Counter(before.loc[changed, "class_name"] + " to " + after.loc[changed, "class_name"]),
        excluded=int(excluded.sum()),
        unchanged=verdicts - int((changed | excluded).sum()),
        in_test=int(((changed | excluded) & before["split"].eq("test")).sum()),
        unknown=unknown,
    )


def _read(pinned: str) -> tuple[Path, bytes]:
    found = PINNED.fullmatch(pinned)
    path, expected = Path(found.group(1) if found else pinned), found and found.group(2)
    try:
        text = read_regular(path)
    except OSError as error:
        cure = "the run keeps a copy, corrections.csv"
        raise InputError(f"data.corrections={path}: cannot be read ({error.strerror}); {cure}") from error
    if expected not in {None, digest := hashlib.sha256(text).hexdigest()}:
        raise InputError(
            f"data.corrections={path}: changed since (sha256 {digest[:12]}, expected {str(expected)[:12]}); "
            "restore it from corrections.csv of the run, or train anew"
        )
    return path, text


def _lines(path: Path, records: pd.DataFrame, question: Question) -> Iterator[tuple[int, list[int], int | None]]:
    """Yield the number of each line, the rows of the records that it names, and their label (None: exclude)."""
    table = read_table(path, key="data.corrections")
    columns = [column for column in KEYS if column in table]
    if not columns or "label" not in table:
        raise InputError(
            f"data.corrections={path}: needs a column label and one of {', '.join(KEYS)}, "
            f"found {', '.join(table.columns)}"
        )
    names = {name: records[name].map(_composed) for name in KEYS.values()}  # names of files from a Mac are decomposed
    known = {column: records.groupby(names[KEYS[column]]).indices for column in columns}
    named_sides = {name.casefold(): (label, name) for label, name in enumerate(question.names)}  # "COVID or Opacity"
    for line, cells in zip(table.index, table.to_dict("records"), strict=True):
        said = str(cells["label"]).strip()
        named = {column: _composed(str(cells[column]).strip()) for column in columns}
        column, film = next(((column, value) for column, value in named.items() if value), ("", ""))
        found = question.match([said]) or named_sides.get(said.casefold())
        if not film or (found is None and said.casefold() != EXCLUDE):
            raise InputError(
                f"{path}, line {line}: label={said!r} of {film!r}: label is {' or '.join(question.names)} or "
                f"{EXCLUDE}, and one of {', '.join(columns)} names the film"
            )
        yield line, list(known[column].get(film.lower() if column == "sha256" else film, [])), found and found[0]


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)
