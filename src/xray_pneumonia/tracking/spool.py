"""Writes what a run logs to a write-ahead log on this machine, from which it is sent to the store.

One folder for each run, `<home>/journal/<run id>/` (named so since version 0.1.0):

    entries.jsonl   one entry a line, appended and never changed
    sent            how many bytes of it the store has for certain
    identity        the run's id in MLflow, where that is another one
    refused.jsonl   entries that the store will never take, with its reason
    model/          the bundle, until MLflow has it
    lock            held by the process that sends; the system frees it when that process dies

The folder is removed when the store has everything and the run is over. A queue in memory would lose on SIGKILL what
was logged but not yet sent, and would not be shared by the processes of a distributed training.
"""

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from xray_pneumonia.tracking.locations import sqlite_path, sqlite_uri
from xray_pneumonia.whole_files import write_whole

FOLDER = "journal"  # below the home


@dataclass(frozen=True)
class Entry:
    """One thing that a run logged; `end` is where the next one starts, in bytes."""

    what: str
    value: Any
    end: int


class Spool:
    """The write-ahead log of one run; any process may append to it, the one that holds the lock sends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._guard = threading.Lock()
        self._unwritten: list[bytes] = []
        self._lock = FileLock(folder / "lock", timeout=0, thread_local=False)
        self._mlflow_id: str | None = None

    def __getstate__(self) -> Path:
        return self.folder

    def __setstate__(self, folder: Path) -> None:
        self.__init__(folder)  # type: ignore[misc]

    @property
    def run_id(self) -> str:
        """The run's id on this machine."""
        return self.folder.name

    @property
    def header(self) -> dict[str, Any] | None:
        """The first entry, with all that MLflow needs to create the run; None in an empty spool."""
        first = next(self.entries(), None)
        return None if first is None else first.value

    @property
    def status(self) -> str | None:
        """How the run ended; None where its process was killed before it could write so."""
        ended: str | None = None
        for entry in self.entries():
            if entry.what in {"end", "resume"}:
                ended = entry.value["status"] if entry.what == "end" else None
        return ended

    def append(self, *entries: tuple[str, Any]) -> None:
        """Write entries to the disk, all or none; what a full disk does not take is written with the next ones.

        Raises:
            OSError: the disk takes nothing; the entries are kept in memory.
        """
        with self._guard:
            self._unwritten += [json.dumps({"what": what, "value": value}).encode() + b"\n" for what, value in entries]
            with (self.folder / "entries.jsonl").open("a+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # processes of one run may share it
                _write(file.fileno(), b"".join(self._unwritten))
            self._unwritten.clear()

    def entries(self, start: int = 0) -> Iterator[Entry]:
        """Read the entries from a place on; one that was cut off when its process was killed is skipped."""
        with suppress(FileNotFoundError), (self.folder / "entries.jsonl").open("rb") as file:
            file.seek(start)
            for line in file:
                start += len(line)
                if not line.endswith(b"\n"):
                    return  # still being written, or its writer is dead
                with suppress(ValueError, KeyError, TypeError):
                    found = json.loads(line)
                    yield Entry(found["what"], found["value"], start)

    @property
    def sent(self) -> int:
        """How many bytes the store has for certain."""
        with suppress(OSError, ValueError):
            return int((self.folder / "sent").read_text(encoding="ascii"))
        return 0

    def mark_sent(self, end: int) -> None:
        """Note that the store has everything up to here."""
        write_whole(self.folder / "sent", [str(end).encode()], sync=False, shared=True)

    def has_unsent(self) -> bool:
        """Tell whether the store may lack entries."""
        return next(self.entries(self.sent), None) is not None

    @property
    def mlflow_id(self) -> str | None:
        """The run's id in MLflow; None while MLflow knows no such run."""
        if self._mlflow_id is None:
            with suppress(OSError):
                self._mlflow_id = (self.folder / "identity").read_text(encoding="ascii").strip() or None
        return self._mlflow_id

    def identify(self, mlflow_id: str) -> None:
        """Note the id that MLflow gave."""
        self._mlflow_id = mlflow_id
        write_whole(self.folder / "identity", [mlflow_id.encode()], sync=False, shared=True)

    def forget_store(self) -> None:
        """Note that the store has nothing of this run any more."""
        self._mlflow_id = None
        for name in ("identity", "sent"):
            (self.folder / name).unlink(missing_ok=True)

    def refuse(self, entry: Entry, reason: str) -> None:
        """Set aside what the store will never take, so that the rest gets through."""
        line = json.dumps({"what": entry.what, "value": entry.value, "reason": reason}).encode() + b"\n"
        with (self.folder / "refused.jsonl").open("a+b", buffering=0) as file:
            _write(file.fileno(), line)

    @property
    def refused(self) -> int:
        """Count the entries that the store will never take."""
        with suppress(OSError):
            return len((self.folder / "refused.jsonl").read_bytes().splitlines())
        return 0

    def is_done(self) -> bool:
        """Tell whether the store has everything; it has not what a full disk never took."""
        return not (self.has_unsent() or self.refused or self._unwritten)

    def acquire(self) -> bool:
        """Become the process that sends; False while another living process is."""
        try:
            self._lock.acquire()
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Let another process send."""
        self._lock.release()

    def remove(self) -> None:
        """Delete the spool: the store has everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()


def _write(descriptor: int, data: bytes) -> None:
    """Append whole lines and wait until the disk has them; a line cut off by a dead writer is ended first."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        data = b"\n" + data
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)  # all or nothing: it is tried again as a whole
        raise


def spools(home: Path) -> list[Spool]:
    """List the spools below a home, oldest first."""
    files = sorted((home / FOLDER).glob("*/entries.jsonl"), key=lambda path: path.stat().st_mtime)
    return [Spool(path.parent) for path in files]


def moved_path(path: Path, header: dict[str, Any], home: Path) -> Path:
    """Return where a path below the home that a spool was written in lies, now that the spool is in `home`."""
    folder = Path(header["folder"])
    # Version 0.1.0 wrote no home, but <home>/staged/<id> or <home>/artifacts/<experiment>/<id>/artifacts.
    above = min(1 if header["staged"] else 3, len(folder.parents) - 1)
    before = Path(header["home"]) if "home" in header else folder.parents[above]
    return home / path.relative_to(before) if path.is_relative_to(before) else path


def store_uri(header: dict[str, Any], home: Path) -> str:
    """Return the URI of the store that a spool was written for; a database that was moved with its home is followed."""
    path = sqlite_path(header["uri"])
    return header["uri"] if path is None else sqlite_uri(moved_path(path, header, home))
