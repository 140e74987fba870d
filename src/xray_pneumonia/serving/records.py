"""Keeps an audit line for each answer, and what readers said to it; never a name of a file or patient."""

import csv
import errno
import json
import os
import threading
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

from xray_pneumonia.errors import InputError
from xray_pneumonia.types import csv_safe

LABELS = "labels.csv"
DICOM = "dicom"  # the reader of films from an archive
COLUMNS = ("sha256", "label", "opinion", "note", "answer", "probability", "model", "time", "reader")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Journal:
    """Appends lines to files that are the user's alone; safe for many threads.

    Args:
        audit: a file of JSON lines, one for each answer.
        keep: the folder of `labels.csv`; None where opinions are not kept.
    """

    def __init__(self, audit: Path, keep: Path | None) -> None:
        self._audit, self.keep = audit, keep
        self._lock = threading.Lock()
        self.counts = Counter[tuple[str, str]]()  # (port, decision or error)
        if audit.exists() and not audit.is_file():
            raise InputError(f"audit={audit}: is no file; name one, which may be new")
        for folder in filter(None, (audit.parent, keep)):
            folder.mkdir(parents=True, exist_ok=True)
        self._append(audit, "")  # fails before the first answer, not at it

    def answered(self, row: Mapping[str, Any], *, model: str, reader: str) -> None:
        """Write the audit line of an answer."""
        known = {name: row.get(name) for name in ("sha256", "decision", "probability", "error")}
        self._append(self._audit, json.dumps({"time": _now(), "model": model, **known, "reader": reader}) + "\n")
        with self._lock:
            self.counts[DICOM if reader == DICOM else "http", row.get("error") or row["decision"]] += 1

    def opinion(self, values: Mapping[str, Any], *, model: str, reader: str) -> None:
        """Write what a reader says to an answer; `xray adapt` reads it, by hash.

        Raises:
            ValueError: there is no folder to keep it in.
        """
        if self.keep is None:
            raise ValueError("keep: no folder")
        row = [_cell(({**values, "model": model, "time": _now(), "reader": reader}).get(name)) for name in COLUMNS]
        csv.writer(line := StringIO(), lineterminator="\n").writerow(row)
        self._append(self.keep / LABELS, line.getvalue(), header=",".join(COLUMNS) + "\n")

    def _append(self, place: Path, line: str, *, header: str = "") -> None:
        """Write a line whole or not at all, and never at the end of one that a kill cut.

        Raises:
            OSError: it does not fit on the disk.
        """
        with self._lock, open(place, "ab+", buffering=0, opener=_private) as file:
            size = file.seek(0, os.SEEK_END)
            torn = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
            data = ("\n" * bool(torn) + header * (not size) + line).encode()
            if file.write(data) != len(data):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _cell(value: Any) -> str:
    """Write a value that no spreadsheet takes for a formula."""
    text = "" if value is None else " ".join(str(value).split())
    return csv_safe(text)
