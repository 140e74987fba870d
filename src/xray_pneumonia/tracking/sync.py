"""What dead processes left behind, brought to its end: journals sent, runs that nobody runs closed."""

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from xray_pneumonia.tracking.beginning import go_back
from xray_pneumonia.tracking.journal import Journal, journals
from xray_pneumonia.tracking.process import alive
from xray_pneumonia.tracking.run import assume
from xray_pneumonia.tracking.search import Found, close, everywhere
from xray_pneumonia.tracking.store import Store, masked

STALE_AFTER = 600.0  # seconds; a living process gives a sign each minute
GONE = "its process is gone"
NO_TAGS: Mapping[str, str] = MappingProxyType({})
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unsent:
    """A journal that no living process sends: `entries` the store may lack, `refused` it will never take."""

    run_id: str
    mlflow_id: str | None
    entries: int
    refused: int
    ended: str | None
    uri: str
    folder: Path


@dataclass(frozen=True)
class Synced:
    """What became of a journal; `problem` is empty where the store has everything."""

    run_id: str
    mlflow_id: str | None
    status: str
    problem: str


def unsent(home: Path) -> list[Unsent]:
    """List the journals that wait, oldest first; those of living processes are no concern."""
    waiting = []
    for journal in journals(home):
        if journal.acquire():
            waiting.append(_described(journal))
            journal.release()
    return waiting


def _described(journal: Journal) -> Unsent:
    head = next(journal.entries(), None)
    uri = str(head.value["uri"]) if head else "?"
    ended = _ended(journal)
    return Unsent(journal.run_id, journal.identity, journal.unsent(), journal.refused, ended, uri, journal.folder)


def _ended(journal: Journal) -> str | None:
    """Read how a run ended; None where its process was killed before it could say so."""
    ended: str | None = None
    for entry in journal.entries():
        if entry.what in {"end", "resume"}:
            ended = entry.value["status"] if entry.what == "end" else None
    return ended


def sync(uri: str, home: Path, *, tags: Mapping[str, str] = NO_TAGS) -> Iterator[Synced]:
    """Send every journal that waits, each to the store it was written for.

    Args:
        uri: of the store of journals whose own URI holds a password, which is never written down.
        home: where the journals are.
        tags: only those of runs that began with these tags.
    """
    away: dict[str, str] = {}  # a store that did not answer once is not waited for again
    for journal in journals(home):
        if (not tags or tags.items() <= _first_tags(journal).items()) and journal.acquire():
            yield _sync(journal, uri, home.resolve(), away)


def _first_tags(journal: Journal) -> Mapping[str, str]:
    head = next(journal.entries(), None)
    return dict(head.value["tags"]) if head else NO_TAGS


def _sync(journal: Journal, uri: str, home: Path, away: dict[str, str]) -> Synced:
    known = _described(journal)
    head = next(journal.entries(), None)
    if head is None:
        journal.remove()  # killed before it said anything
        return Synced(known.run_id, None, "EMPTY", "")
    own = uri if known.uri == masked(uri) else known.uri
    secret = f"belongs to {own}: tracking.uri= names it with its password" if "***" in own else ""
    problem = away.get(own, "") or secret
    if problem:
        journal.release()
        return Synced(known.run_id, known.mlflow_id, "WAITS", problem)
    store = Store(own, "", head.value["experiment"], home)
    run = assume(store, go_back(store, journal), resumed=True)
    done = run.conclude() if known.ended else run.close("KILLED", GONE)
    if not done:
        problem = (run.outbox.problem if run.outbox else "") or f"{journal.refused} entries refused"
        away |= {own: problem} if journal.unsent() else {}
    return Synced(known.run_id, run.mlflow_id, known.ended or "KILLED", problem)


def stale(store: Store, home: Path) -> list[Found]:
    """List the runs of this project that are RUNNING in the store while no process runs them.

    Those that are over and wait to be sent are not among them.
    """
    over = {name for one in unsent(home) if one.ended for name in (one.run_id, one.mlflow_id)}
    running = everywhere(store, ["attributes.status = 'RUNNING'"])
    ours = [run for run in running if {"host", "pid", "born"} <= {*run.tags} and run.run_id not in over]
    return [run for run in ours if not _alive(run)]


def _alive(run: Found) -> bool:
    def silent() -> float:
        return time.time() - float(run.tags.get("heartbeat", run.start / 1000))

    return alive(run.tags, silent=silent, stale_after=STALE_AFTER)


def mark(store: Store, runs: list[Found]) -> None:
    """Mark runs KILLED."""
    for run in runs:
        reason = f"{GONE} ({run.tags['host']}, pid {run.tags['pid']}); found by xray doctor"
        close(store, run.run_id, status="KILLED", reason=reason)


def leftovers(home: Path) -> Mapping[str, int]:
    """Size in bytes of staged files, by run, that no journal waits to send."""
    waiting = {journal.run_id for journal in journals(home)}
    folders = [path for path in (home / "staged").glob("*") if path.is_dir() and path.name not in waiting]
    return {path.name: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in folders}


def free(home: Path) -> int:
    """Bytes that fit on the disk of a folder, or of the nearest one above it that exists."""
    there = next(path for path in [home, *home.parents] if path.exists())
    return shutil.disk_usage(there).free
