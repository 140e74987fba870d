"""Keeps an audit line for each answer, and what readers said to it; never a name of a file or patient."""

import csv
import json
import os
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xray_pneumonia.types import csv_safe

LABELS = "labels.csv"
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
        for folder in filter(None, (audit.parent, keep)):
            folder.mkdir(parents=True, exist_ok=True)

    def answered(self, row: Mapping[str, Any], *, model: str, reader: str) -> None:
        """Write the audit line of an answer."""
        known = {name: row.get(name) for name in ("sha256", "decision", "probability", "error")}
        self._append(self._audit, json.dumps({"time": _now(), "model": model, **known, "reader": reader}) + "\n")

    def opinion(self, values: Mapping[str, Any], *, model: str, reader: str) -> None:
        """Write what a reader says to an answer; `xray adapt` reads it, by hash.

        Raises:
            ValueError: there is no folder to keep it in.
        """
        if self.keep is None:
            raise ValueError("keep: no folder")
        place = self.keep / LABELS
        row = [_cell(({**values, "model": model, "time": _now(), "reader": reader}).get(name)) for name in COLUMNS]
        with self._lock, open(place, "a", encoding="utf-8", newline="", opener=_private) as file:
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow(COLUMNS)
            writer.writerow(row)

    def _append(self, place: Path, text: str) -> None:
        with self._lock, open(place, "a", encoding="utf-8", opener=_private) as file:
            file.write(text)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _cell(value: Any) -> str:
    """Write a value that no spreadsheet takes for a formula."""
    text = "" if value is None else " ".join(str(value).split())
    return csv_safe(text)
