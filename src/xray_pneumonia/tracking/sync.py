"""Sends spools to the store: that of a running run from a thread, those of dead processes for `xray doctor sync`."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from xray_pneumonia.masking import HIDDEN, masked
from xray_pneumonia.tracking.locations import STAGED, repair_moved
from xray_pneumonia.tracking.process import alive, now
from xray_pneumonia.tracking.replay import Replay, inventory
from xray_pneumonia.tracking.spool import Spool, spools, store_uri
from xray_pneumonia.tracking.store import Store
from xray_pneumonia.tracking.store_errors import StoreUnavailable, classified, first_line
from xray_pneumonia.tracking.stored_runs import STATE, STATES, StoredRun, close, find_running

POLL = 1.0  # seconds until entries are seen that another process wrote
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0  # seconds between two attempts while the store fails
STUCK = 60.0  # seconds without any progress after which the end of a run waits no longer
HEARTBEAT = 60.0  # seconds between two signs of life in the store
STALE_AFTER = 600.0  # seconds without one after which a process on another machine is gone
CLOCKS = 600.0  # seconds that the clocks of two machines may be apart: each of them is wrong by five minutes
GONE = "its process is gone"
NO_TAGS: Mapping[str, str] = MappingProxyType({})
log = logging.getLogger(__name__)


class Sender:
    """A thread that sends what a spool holds, in order, and tries again while the store fails.

    Args:
        spool: of the run; its lock is held, and given up when the thread ends: two senders would make two runs.
        replay: sends its entries.
        unsure: whether the store may have what the spool calls unsent.
    """

    def __init__(self, spool: Spool, replay: Replay, *, unsure: bool) -> None:
        self._spool, self._replay, self._unsure = spool, replay, unsure
        self._changed = threading.Condition()
        self._woken = self._closing = self._slow = False
        self._failures, self._heartbeat = 0, time.monotonic()
        self.problem = ""  # of the last attempt
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="sender", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Have new entries sent now, unless the store fails: then they wait for the next attempt."""
        with self._changed:
            self._woken = self._woken or not self._failures
            self._changed.notify_all()

    def settle(self, seconds: float) -> None:
        """Wait until the store has everything, but not longer, and not at all while it fails or lags."""
        self.wake()
        end = time.monotonic() + seconds
        with self._changed:
            while not (self._failures or self._slow) and self._spool.has_unsent():
                left = end - time.monotonic()
                self._slow = left <= 0
                self._changed.wait(max(left, 0))

    def finish(self) -> bool:
        """Try a last time; an attempt under way counts. Tells whether the store has everything."""
        self._replay.progressed = time.monotonic()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        while self._thread.is_alive() and time.monotonic() - self._replay.progressed < STUCK:
            self._thread.join(0.2)
        return self._spool.is_done()

    def _work(self) -> None:
        while True:
            self._woken = False
            self._attempt()
            with self._changed:
                self._changed.notify_all()
                if self._closing and (self._failures or not self._spool.has_unsent()):
                    break
                self._changed.wait_for(lambda: self._woken or self._closing, self._pause())
        self._spool.remove() if self._spool.is_done() else self._spool.release()

    def _pause(self) -> float:
        return min(FIRST_PAUSE * 2 ** (self._failures - 1), LONGEST_PAUSE) if self._failures else POLL

    def _attempt(self) -> None:
        try:
            self._replay.send_unsent(unsure=self._unsure)
            if time.monotonic() - self._heartbeat > HEARTBEAT:
                self._heartbeat = time.monotonic()
                self._replay.send_heartbeat()
        except Exception as error:  # whatever a store does, it must not end a training
            self._failures, self._unsure = self._failures + 1, True
            self.problem, self.error = first_line(error), error
            if self._failures == 1:
                log.warning("the store fails (%s); the run goes on and is kept in %s", self.problem, self._spool.folder)
            return
        if self._failures:
            log.info("run %s: the store answers again", self._spool.run_id)
        self._failures, self._unsure, self._slow, self.problem = 0, False, False, ""


@dataclass(frozen=True)
class Unsent:
    """A spool that no living process sends: `entries` the store may lack, `refused` it will never take."""

    run_id: str
    mlflow_id: str | None
    entries: int
    refused: int
    status: str | None


@dataclass(frozen=True)
class Synced:
    """The outcome for a spool; `problem` is empty where the store has everything."""

    run_id: str
    mlflow_id: str | None
    status: str
    problem: str


def unsent(home: Path) -> list[Unsent]:
    """List the spools that wait, oldest first, without those of living processes."""
    waiting = []
    for spool in spools(home):
        if spool.acquire():
            entries = sum(1 for _ in spool.entries(spool.sent))
            waiting.append(Unsent(spool.run_id, spool.mlflow_id, entries, spool.refused, spool.status))
            spool.release()
    return waiting


def sync(uri: str, home: Path, *, tags: Mapping[str, str] = NO_TAGS, loader_module: str = "") -> Iterator[Synced]:
    """Send every spool that waits, each to the store it was written for; one that moved with the home is followed.

    Args:
        uri: of the store of spools whose own URI holds a secret, which is never written down.
        home: where the spools are.
        tags: only those of runs that began with these tags.
        loader_module: see `Replay`.
    """
    unavailable: dict[str, str] = {}  # a store that did not answer once is not waited for again
    for spool in spools(home):
        header = spool.header
        if (not tags or tags.items() <= (header["tags"] if header else NO_TAGS).items()) and spool.acquire():
            if header is None:
                spool.remove()  # its process was killed before it logged anything
                yield Synced(spool.run_id, None, "EMPTY", "")
            else:
                own = store_uri(header, home.resolve())
                store = Store(uri if masked(own) == masked(uri) else own, "", header["experiment"], home.resolve())
                yield _sync(spool, store, unavailable, loader_module)


def _sync(spool: Spool, store: Store, unavailable: dict[str, str], loader_module: str) -> Synced:
    status = spool.status
    hidden = any(sign in store.uri for sign in (HIDDEN, "${"))
    secret = f"belongs to {store.uri}: tracking.uri= names it with its secret" if hidden else ""
    problem = unavailable.get(store.uri, "") or secret
    if problem:
        spool.release()
        return Synced(spool.run_id, spool.mlflow_id, "WAITS", problem)
    repair_moved(store.uri, store.home)
    if status is None:
        spool.append(*closing_entries(store, spool, "KILLED", GONE))
    sender = Sender(spool, Replay(store, spool, loader_module=loader_module), unsure=True)
    if not sender.finish():
        refused = f"{spool.refused} entries refused" if spool.refused else "the store does not answer"
        problem = sender.problem or refused
        cause = sender.error and classified(sender.error, uri=store.uri)
        if spool.has_unsent() and (cause is None or isinstance(cause, StoreUnavailable)):  # not for this run alone
            unavailable[store.uri] = problem
    return Synced(spool.run_id, spool.mlflow_id, status or "KILLED", problem)


def closing_entries(
    store: Store, spool: Spool, status: str, reason: str, *, pruned: bool = False
) -> list[tuple[str, Any]]:
    """List the last entries of a run: why it ended, the files that have to be sent, its status."""
    state = "pruned" if pruned and status == "FINISHED" else STATES[status]
    staged, started = store.home / STAGED / spool.run_id, (spool.header or {"start": 0})["start"]
    tags = [("tags", {STATE: state, **({"reason": reason} if reason else {})})]
    files = [("artifacts", inventory(staged))] if staged.is_dir() else []
    return [*tags, *files, ("end", {"status": status, "time": max(now(), started)})]


def stale(store: Store, home: Path) -> list[StoredRun]:
    """List the runs of this project that are RUNNING in the store while no process runs them.

    Those that are over and wait to be sent are not among them.
    """
    over = {name for one in unsent(home) if one.status for name in (one.run_id, one.mlflow_id)}
    ours = [run for run in find_running(store) if {"host", "pid", "born"} <= {*run.tags} and run.run_id not in over]
    return [run for run in ours if not is_alive(run)]


def is_alive(run: StoredRun) -> bool:
    """Tell whether a process runs a run; on other machines by its sign of life.

    Who asks again and again sees how long the sign stays the same, whatever the clocks say.
    """

    def silent() -> float:
        sign = run.tags.get("heartbeat", str(run.started / 1000))
        return max(time.monotonic() - _first_seen(run.run_id, sign), time.time() - float(sign) - CLOCKS)

    return alive(run.tags, silent=silent, stale_after=STALE_AFTER)


@lru_cache(maxsize=256)
def _first_seen(run_id: str, sign: str) -> float:
    """Return when this process saw a run's sign of life for the first time, by a clock that nobody sets."""
    return time.monotonic()


def mark_killed(store: Store, runs: list[StoredRun]) -> None:
    """Mark runs KILLED."""
    for run in runs:
        reason = f"{GONE} ({run.tags['host']}, pid {run.tags['pid']}); found by xray doctor"
        close(store, run.run_id, status="KILLED", reason=reason)
