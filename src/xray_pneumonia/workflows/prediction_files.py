"""Writes the answers of `xray predict`: one row for each file, on the disk after each batch, continued by a rerun.

`predictions.jsonl` is what a rerun reads, `predictions.csv` says the same to a spreadsheet, `predictions.json`
identifies model and input. A rerun drops a torn last line, failed files and files that changed since, and answers what
is left; it ends with the rows in the order in which an uninterrupted run writes them.
"""

import csv
import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from io import StringIO
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from xray_pneumonia.data.files import InputFile
from xray_pneumonia.data.images.sandbox import Attempt
from xray_pneumonia.errors import InputError
from xray_pneumonia.types import csv_safe
from xray_pneumonia.whole_files import write_whole

Row = dict[str, Any]
ROWS, TABLE, IDENTITY, LOCK = "predictions.jsonl", "predictions.csv", "predictions.json", "predictions.lock"
COLUMNS = (
    "path", "decision", "probability", "label", "operating_point", "reason", "flags", "error", "message", "sha256",
    "width", "height", "mode", "heat_map", "prevalence", "gate_score", "brightness",
)  # fmt: skip
NEEDED = ("path", "stamp", "error")  # what a rerun reads of a row
FULL = {errno.ENOSPC, errno.EDQUOT}


def make_row(attempt: Attempt, known: Mapping[Any, Any]) -> Row:
    """Make a row of what is known of a file; what is not stays empty."""
    empty = dict.fromkeys(COLUMNS) | {"reason": "", "flags": [], "error": "", "message": ""}
    decoded = {name: getattr(attempt, name) for name in ("sha256", "width", "height", "mode")}
    return empty | {"path": attempt.file.id, "stamp": attempt.file.stamp} | decoded | dict(known)


class PredictionFiles:
    """The files of one output folder; a context manager that locks it.

    Args:
        folder: new, empty, or that of the same command before.
        identity: all that the answers depend on.

    Raises:
        InputError: the folder holds other things, or answers of another model or about another input.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self._identity = folder, json.loads(json.dumps(identity))
        self._answered: dict[str, str] = {}  # path -> stamp of the files answered before

    def __enter__(self) -> Self:
        try:
            with ExitStack() as stack:
                self._require_same_command()
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(self.folder / LOCK, timeout=0))
                self._start(stack)
                self._open = stack.pop_all()
        except Timeout as error:
            raise InputError(f"output={self.folder}: another `xray predict` is writing there; wait for it") from error
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def _start(self, stack: ExitStack) -> None:
        write_whole(self.folder / IDENTITY, [f"{json.dumps(self._identity, indent=2)}\n".encode()])
        self._answered = {row["path"]: row["stamp"] for row in self.rows() if not row["error"]}
        self.resumed = bool(self._answered)
        self._rewrite(row for row in self.rows() if not row["error"])
        self._rows = stack.enter_context((self.folder / ROWS).open("a", encoding="utf-8"))
        self._table = stack.enter_context((self.folder / TABLE).open("a", encoding="utf-8", newline=""))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with suppress(OSError):  # on a full disk `append` has raised it
            self._open.close()
        if isinstance(error, OSError) and error.errno in FULL:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> InputError:
        cure = "make room and run the same command again, it goes on" if error.errno in FULL else "name another folder"
        return InputError(f"output={self.folder}: cannot be written: {error.strerror}; {cure}")

    def lacks(self, file: InputFile) -> bool:
        """Tell whether a file has no answer yet, or has changed since it got one."""
        return self._answered.get(file.id) != file.stamp

    def append(self, rows: Iterable[Row]) -> None:
        """Append rows; when this returns they are on the disk."""
        rows = list(rows)
        for file, text in ((self._rows, map(_json_line, rows)), (self._table, map(_csv_row, rows))):
            file.writelines(text)
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> Iterator[Row]:
        """Read the rows back, without a last line that a kill tore."""
        with suppress(FileNotFoundError), (self.folder / ROWS).open("rb") as file:
            for line in file:
                with suppress(ValueError):  # UnicodeDecodeError is one
                    row = json.loads(line)
                    if isinstance(row, dict) and all(isinstance(row.get(name), str) for name in NEEDED):
                        yield row

    def sort(self, files: Callable[[], Iterable[InputFile]] | None) -> None:
        """Bring the rows of a continued run into the order of the files that are there, the newest one for each.

        Without `files` the rows keep their order, and those of files that are gone.
        """
        if not self.resumed:
            return
        offsets: dict[str, int] = {}
        with (self.folder / ROWS).open("rb") as file:
            offset = 0
            for line in file:
                offsets[json.loads(line)["path"]] = offset
                offset += len(line)

        def ordered() -> Iterator[Row]:
            with (self.folder / ROWS).open("rb") as file:
                for path in offsets if files is None else (one.id for one in files()):
                    if path in offsets:
                        file.seek(offsets[path])
                        yield json.loads(file.readline())

        self._rewrite(ordered())

    def _rewrite(self, rows: Iterable[Row]) -> None:
        """Write both files anew, from one pass over the rows."""
        write_whole(self.folder / ROWS, (_json_line(row).encode() for row in rows))
        table = chain([_csv_line(COLUMNS)], map(_csv_row, self.rows()))
        write_whole(self.folder / TABLE, (line.encode() for line in table))

    def _require_same_command(self) -> None:
        before = self.folder / IDENTITY
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise InputError(f"output={self.folder}: is a file; name a new folder")
        if not before.exists():
            if any(entry.name not in {LOCK, f".{IDENTITY}.tmp"} for entry in self.folder.iterdir()):
                raise InputError(f"output={self.folder}: holds other files; name a new or an empty folder")
            return
        try:
            known = json.loads(before.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{before}: is damaged; remove the folder, or name another one with output=") from error
        changed = [key for key in {**known, **self._identity} if known.get(key) != self._identity.get(key)]
        if changed:
            what = "; ".join(f"{key} was {known.get(key)!r}, is {self._identity.get(key)!r}" for key in changed[:3])
            raise InputError(
                f"output={self.folder}: holds the answers of another command ({what}); name another folder with "
                "output=, or remove this one"
            )


def _json_line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _csv_row(row: Row) -> str:
    return _csv_line([_csv_cell(row.get(name)) for name in COLUMNS])


def _csv_cell(value: Any) -> str:
    """Write a value that no spreadsheet takes for a formula."""
    if isinstance(value, float):
        return f"{value:.9g}"
    text = " ".join(value) if isinstance(value, list) else "" if value is None else str(value)
    return csv_safe(text)


def _csv_line(cells: Iterable[str]) -> str:
    buffer = StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()
