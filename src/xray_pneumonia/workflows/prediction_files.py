"""The answers of `xray predict` on disk: one row for each file, safe after each batch, continued by a rerun.

`predictions.jsonl` is the truth, `predictions.csv` says the same to a spreadsheet, `predictions.json`
names what answered. A rerun drops a torn last line, failed files and files that changed since, and
answers what is left; it ends with the rows in the order in which a run without a break writes them.
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
from xray_pneumonia.errors import InputError

Row = dict[str, Any]
ROWS, TABLE, IDENTITY, LOCK = "predictions.jsonl", "predictions.csv", "predictions.json", "predictions.lock"
COLUMNS = (
    "path", "decision", "probability", "label", "operating_point", "reason", "flags", "error", "message", "sha256",
    "width", "height", "mode", "heat_map",
)  # fmt: skip
FULL = {errno.ENOSPC, errno.EDQUOT}
FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Answers:
    """The files of one output folder; a context manager that keeps others out of it.

    Args:
        folder: new, empty, or that of the same command before.
        identity: what answers, and about which input.

    Raises:
        InputError: the folder holds other things, or answers of another model or about another input.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self._identity = folder, json.loads(json.dumps(identity))
        self._known: dict[str, str] = {}  # path -> stamp of the files answered before

    def __enter__(self) -> Self:
        try:
            with ExitStack() as stack:
                self._require_ours()
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(self.folder / LOCK, timeout=0))
                self._begin(stack)
                self._held = stack.pop_all()
        except Timeout as error:
            raise InputError(f"output={self.folder}: another `xray predict` is writing there; wait for it") from error
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def _begin(self, stack: ExitStack) -> None:
        _write_aside(self.folder / IDENTITY, [json.dumps(self._identity, indent=2) + "\n"])
        if (self.folder / ROWS).exists():
            self._known = {row["path"]: row["stamp"] for row in self.rows() if not row["error"]}
        self.resumed = bool(self._known)
        self._rewrite(row for row in self.rows() if not row["error"])
        self._rows = stack.enter_context((self.folder / ROWS).open("a", encoding="utf-8"))
        self._table = stack.enter_context((self.folder / TABLE).open("a", encoding="utf-8", newline=""))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with suppress(OSError):  # on a full disk `add` has said so
            self._held.close()
        if isinstance(error, OSError) and error.errno in FULL:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> InputError:
        cure = "make room and run the same command again, it goes on" if error.errno in FULL else "name another folder"
        return InputError(f"output={self.folder}: cannot be written: {error.strerror}; {cure}")

    def lack(self, file: InputFile) -> bool:
        """Tell whether a file has no answer yet, or has changed since it got one."""
        return self._known.get(file.id) != file.stamp

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows; when this returns they are on the disk."""
        rows = list(rows)
        for file, text in ((self._rows, map(_line, rows)), (self._table, map(_cells, rows))):
            file.writelines(text)
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> Iterator[Row]:
        """Read the rows back; what a kill tore is left out."""
        with suppress(FileNotFoundError), (self.folder / ROWS).open(encoding="utf-8") as file:
            for line in file:
                with suppress(ValueError):
                    yield json.loads(line)

    def settle(self, files: Callable[[], Iterable[InputFile]]) -> None:
        """Bring the rows into the order of the files, the newest one for each, after a run with a break."""
        if not self.resumed:
            return
        places: dict[str, int] = {}
        with (self.folder / ROWS).open("rb") as file:
            place = 0
            for line in file:
                places[json.loads(line)["path"]] = place
                place += len(line)

        def ordered() -> Iterator[Row]:
            with (self.folder / ROWS).open("rb") as file:
                for found in files():
                    if found.id in places:
                        file.seek(places[found.id])
                        yield json.loads(file.readline())

        self._rewrite(ordered())

    def _rewrite(self, rows: Iterable[Row]) -> None:
        """Write both files anew, from one pass over the rows."""
        _write_aside(self.folder / ROWS, map(_line, rows))
        _write_aside(self.folder / TABLE, chain([_csv_line(COLUMNS)], map(_cells, self.rows())))

    def _require_ours(self) -> None:
        """Refuse a folder with other things in it."""
        before = self.folder / IDENTITY
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise InputError(f"output={self.folder}: is a file; name a new folder")
        if not before.exists():
            if any(entry.name not in {LOCK, _draft(before).name} for entry in self.folder.iterdir()):
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


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _cells(row: Row) -> str:
    """Write a row of the CSV that no spreadsheet takes for formulas."""
    return _csv_line([_cell(row.get(name)) for name in COLUMNS])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.9g}"
    text = " ".join(value) if isinstance(value, list) else "" if value is None else str(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def _csv_line(cells: Iterable[str]) -> str:
    buffer = StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _write_aside(path: Path, lines: Iterable[str]) -> None:
    """Write a file whole or not at all."""
    draft = _draft(path)
    with draft.open("w", encoding="utf-8", newline="") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
