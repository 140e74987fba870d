"""The journal of a run: everything it says is written and flushed here first, then sent.

One folder for each run, `<home>/journal/<run id>/`:

    entries.jsonl   one entry a line, appended and never changed
    sent            how many bytes of it the store has for certain
    identity        the run's id in MLflow, where that is another one
    refused.jsonl   entries that the store will never take, with its reason
    model/          the bundle, until MLflow has it
    lock            held by the process that sends; the system frees it when that process dies

The folder goes when the store has everything and the run is over.
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

FOLDER = "journal"


@dataclass(frozen=True)
class Entry:
    """One thing a run said; `end` is where the next one starts, in bytes."""

    what: str
    value: Any
    end: int


class Journal:
    """The journal of one run; any process may append to it, the one that holds the lock sends.

    Args:
        folder: of this run's journal; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._guard = threading.Lock()
        self._unwritten: list[bytes] = []
        self._lock = FileLock(folder / "lock", timeout=0, thread_local=False)

    def __getstate__(self) -> Path:
        return self.folder

    def __setstate__(self, folder: Path) -> None:
        """Arrive in another process."""
        self.__init__(folder)  # type: ignore[misc]

    @property
    def run_id(self) -> str:
        """The run's id, as this machine knows it."""
        return self.folder.name

    @property
    def begun(self) -> bool:
        """Whether it holds anything; a journal that was sent and put away does not."""
        return (self.folder / "entries.jsonl").exists()

    def append(self, what: str, value: Any) -> None:
        """Write an entry to the disk; see `extend`."""
        self.extend([(what, value)])

    def extend(self, entries: list[tuple[str, Any]]) -> None:
        """Write entries to the disk, all or none; what a full disk does not take is written with the next entry.

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
        """Read the entries from a place on; one that was cut off when its process was killed is passed over."""
        if not self.begun:
            return
        with (self.folder / "entries.jsonl").open("rb") as file:
            file.seek(start)
            for line in file:
                start += len(line)
                if not line.endswith(b"\n"):
                    return  # still being written, or its writer is dead
                if (entry := _parsed(line, start)) is not None:
                    yield entry

    @property
    def sent(self) -> int:
        """How many bytes the store has for certain."""
        with suppress(OSError, ValueError):
            return int((self.folder / "sent").read_text(encoding="ascii"))
        return 0

    def mark_sent(self, end: int) -> None:
        """Note that the store has everything up to here."""
        self._replace("sent", str(end))

    @property
    def identity(self) -> str | None:
        """The run's id in MLflow; None while MLflow knows no such run."""
        with suppress(OSError):
            return (self.folder / "identity").read_text(encoding="ascii").strip() or None
        return None

    def identify(self, mlflow_id: str) -> None:
        """Note the id that MLflow gave."""
        self._replace("identity", mlflow_id)

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

    def unsent(self) -> int:
        """Count the entries that the store may lack."""
        return sum(1 for _ in self.entries(self.sent))

    def acquire(self) -> bool:
        """Become the one that sends; False while another living process is."""
        try:
            self._lock.acquire()
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Let another process send."""
        self._lock.release()

    def remove(self) -> None:
        """Delete the journal: the store has everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()

    def _replace(self, name: str, text: str) -> None:
        draft = self.folder / f".{name}.{os.getpid()}.tmp"
        draft.write_text(text, encoding="ascii")
        os.replace(draft, self.folder / name)


def journals(home: Path) -> list[Journal]:
    """List the journals below a home, oldest first."""
    folders = [path for path in (home / FOLDER).glob("*") if (path / "entries.jsonl").exists()]
    return [Journal(path) for path in sorted(folders, key=lambda path: (path / "entries.jsonl").stat().st_mtime)]


def _parsed(line: bytes, end: int) -> Entry | None:
    try:
        found = json.loads(line)
        return Entry(found["what"], found["value"], end)
    except (ValueError, KeyError, TypeError):
        return None


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
