"""Keeps received films on disk and where each stands: received, answered, sent; a database that survives any kill."""

import errno
import hashlib
import itertools
import logging
import os
import shutil
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from xray_pneumonia.errors import InputError
from xray_pneumonia.whole_files import sync_folder, write_whole

RECEIVED, ANSWERED, SENT = "received", "answered", "sent"
# Bytes that replies leave free for the database, without which nothing is sent and freed; films leave twice that.
SPARE = 2**25
FAILED, REFUSED = "failed", "refused"  # no reply could be written; the archive does not take it
TABLE = """
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS films (
    name TEXT PRIMARY KEY, study TEXT NOT NULL, state TEXT NOT NULL, received REAL NOT NULL, changed REAL NOT NULL,
    content TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS by_state ON films (state, received);
CREATE INDEX IF NOT EXISTS by_study ON films (study, received);
"""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Film:
    """A received film: `name` is made of its SOP Instance UID, `study` of its Study Instance UID."""

    name: str
    study: str


class Films:
    """The films of one folder; safe for many threads of one process.

    A film is on disk before it is in the database, its replies before it is `answered`, and it is `sent` after the
    archive has acknowledged them all: whatever a kill interrupts is done again with the same UIDs.

    Args:
        folder: made when missing; its files are the user's alone.

    Raises:
        InputError: it cannot be used, or another process uses it.
    """

    def __init__(self, folder: Path) -> None:
        self._inbox, self._outbox = folder / "inbox", folder / "outbox"
        self._lock = threading.Lock()
        try:
            for place in (self._inbox, self._outbox):
                place.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(folder / "films.db", 2.0, check_same_thread=False, isolation_level=None)
            self._database.executescript(TABLE)
        except (OSError, sqlite3.Error) as error:
            cure = "another server uses it" if "locked" in str(error) else "name a folder that can be written to"
            raise InputError(f"dicom.folder={folder}: {error}; {cure}") from error

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    def receive(self, data: bytes, *, instance: str, study: str) -> None:
        """Store a film; when this returns it is on disk. One that was answered before is not answered again."""
        film, content = Film(_name(instance), _name(study)), hashlib.sha256(data).hexdigest()
        with self._lock:
            query = "SELECT content FROM films WHERE name = ?"
            known = self._database.execute(query, (film.name,)).fetchone()
        if known:
            if known[0] != content:
                log.warning("a film came again under its UID with other content; what came first is answered")
            return
        _write(self.path(film), data, spare=2 * SPARE)
        now = time.time()
        row = (film.name, film.study, RECEIVED, now, now, content)
        with self._lock:
            self._database.execute("INSERT OR IGNORE INTO films VALUES (?, ?, ?, ?, ?, ?)", row)

    def settled(self, *, seconds: float) -> list[Film]:
        """List the films of studies that received nothing for so long, or in the future: the clock was set back."""
        query = """
            SELECT name, study FROM films AS film WHERE state = ? AND
                (SELECT max(received) FROM films WHERE study = film.study) NOT BETWEEN ? AND ?
            ORDER BY received
        """
        now = time.time()
        return self._films(query, (RECEIVED, now - seconds, now))

    def unsent(self) -> list[Film]:
        """List the films whose replies wait to be sent."""
        return self._films("SELECT name, study FROM films WHERE state = ? ORDER BY received", (ANSWERED,))

    def counts(self) -> dict[str, int]:
        """Count the films in each state."""
        with self._lock:
            return dict(self._database.execute("SELECT state, count(*) FROM films GROUP BY state").fetchall())

    def path(self, film: Film) -> Path:
        """Name the file of a film."""
        return self._inbox / f"{film.name}.dcm"

    def replies(self, film: Film) -> list[Path]:
        """List the files of the replies to a film."""
        paths = (self._outbox / f"{film.name}.{number}.dcm" for number in itertools.count())
        return list(itertools.takewhile(Path.exists, paths))

    def answer(self, film: Film, replies: list[bytes]) -> None:
        """Store the replies to a film."""
        for number, data in enumerate(replies):
            _write(self._outbox / f"{film.name}.{number}.dcm", data, spare=SPARE)
        self._move(film, ANSWERED)

    def close_film(self, film: Film) -> None:
        """Mark the replies to a film as sent, and forget film and replies."""
        self._move(film, SENT)
        for path in (*self.replies(film), self.path(film)):
            path.unlink(missing_ok=True)

    def fail(self, film: Film) -> None:
        """Set a film aside that no reply can be written to."""
        self._move(film, FAILED)

    def refuse(self, film: Film) -> None:
        """Set a film aside whose replies the archive does not take."""
        self._move(film, REFUSED)

    def try_again(self, *, seconds: float) -> None:
        """Take up the films again that were set aside so long ago."""
        now = time.time()
        with self._lock:
            for aside, state in ((FAILED, RECEIVED), (REFUSED, ANSWERED)):
                query = "UPDATE films SET state = ? WHERE state = ? AND changed NOT BETWEEN ? AND ?"
                self._database.execute(query, (state, aside, now - seconds, now))

    def clean_up(self) -> None:
        """Remove files of films that are sent or were never acknowledged; take up again what was set aside."""
        self.try_again(seconds=0)
        with self._lock:
            open_ = {row[0] for row in self._database.execute("SELECT name FROM films WHERE state != ?", (SENT,))}
        for path in (*self._inbox.iterdir(), *self._outbox.iterdir()):
            if path.suffix == ".tmp" or path.name.partition(".")[0] not in open_:
                path.unlink(missing_ok=True)

    def _films(self, query: str, values: tuple[object, ...]) -> list[Film]:
        with self._lock:
            return [Film(*row) for row in self._database.execute(query, values)]

    def _move(self, film: Film, state: str) -> None:
        with self._lock:
            self._database.execute(
                "UPDATE films SET state = ?, changed = ? WHERE name = ?", (state, time.time(), film.name)
            )


def _name(uid: str) -> str:
    """Make a file's name of what a sender wrote."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


def _write(path: Path, data: bytes, *, spare: int) -> None:
    """Write a file whole and durably, or not at all.

    Raises:
        OSError: less than `spare` bytes would be free.
    """
    if shutil.disk_usage(path.parent).free < len(data) + spare:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent))
    write_whole(path, [data], shared=True)
    sync_folder(path.parent)
