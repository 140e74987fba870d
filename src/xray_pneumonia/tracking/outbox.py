"""Sends a journal beside the training: a store that is slow, away or broken costs the training nothing."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice

from xray_pneumonia.tracking.journal import Journal
from xray_pneumonia.tracking.spool import Delivery
from xray_pneumonia.tracking.store import first_line

POLL = 1.0  # seconds until entries are seen that another process wrote
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0  # seconds between two attempts while the store fails
STUCK = 60.0  # seconds without any progress after which the end of a run waits no longer
LEAVING = 5.0  # seconds that the end of a run waits for an attempt under way
BEAT = 60.0  # seconds between two signs of life in the store
AT_ONCE = 200  # entries read from the journal at a time
log = logging.getLogger(__name__)


class Outbox:
    """One thread that sends what the journal holds, in order, and tries again while the store fails.

    Args:
        journal: of the run; its lock is held.
        delivery: sends entries.
        beat: tells the store that this process lives.
        unsure: whether the store may have what the journal calls unsent.
    """

    def __init__(self, journal: Journal, delivery: Delivery, *, beat: Callable[[str], None], unsure: bool) -> None:
        self._journal, self._delivery, self._beat, self._unsure = journal, delivery, beat, unsure
        self._changed = threading.Condition()
        self._attempts = self._failures = 0
        self._sent = journal.sent
        self._hurry = self._stopped = self._slow = self._over = self._left = False
        self._moved = self._beaten = time.monotonic()
        self.problem = ""
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def moved(self) -> None:
        """Note that the store did something."""
        self._moved = time.monotonic()

    def nudge(self) -> None:
        """Have new entries sent now, unless the store fails: then they wait for the next attempt."""
        with self._changed:
            self._hurry = self._hurry or not self._failures
            self._changed.notify_all()

    def settle(self, seconds: float) -> None:
        """Wait until the store has everything, but not longer, and not at all while it fails or lags."""
        self.nudge()
        end = time.monotonic() + seconds
        with self._changed:
            while not (self._failures or self._slow) and self._behind():
                left = end - time.monotonic()
                self._slow = left <= 0
                self._changed.wait(max(left, 0))

    def finish(self) -> bool:
        """Try a last time and stop; tells whether the store has everything."""
        self.moved()
        with self._changed:
            last = self._attempts + 1  # one that is under way counts
            self._hurry = True
            self._changed.notify_all()
            while self._behind() and time.monotonic() - self._moved < STUCK:
                if self._failures and self._attempts >= last:
                    break
                self._changed.wait(0.2)
            done = not self._behind()
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(timeout=LEAVING)
        return done

    def leave(self) -> None:
        """Let another process send, as soon as no attempt is under way: two at once would make two runs."""
        with self._changed:
            self._left = True
            if self._over:
                self._journal.release()

    def _behind(self) -> bool:
        return next(self._journal.entries(self._sent), None) is not None

    def _work(self) -> None:
        while not self._stopped:
            self._hurry = False
            try:
                self._send()
                self._show_life()
            except Exception as error:  # whatever a store does, it must not end a training
                self._note(first_line(error))
            with self._changed:
                self._attempts += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._hurry or self._stopped, self._pause())
        with self._changed:
            self._over = True
            if self._left:
                self._journal.release()

    def _pause(self) -> float:
        return min(FIRST_PAUSE * 2 ** (self._failures - 1), LONGEST_PAUSE) if self._failures else POLL

    def _send(self) -> None:
        while entries := list(islice(self._journal.entries(self._sent), AT_ONCE)):
            for end in self._delivery.send(entries, unsure=self._unsure):
                self._sent = end
                self._journal.mark_sent(end)
            self._unsure = False
            if self._failures:
                log.info("run %s: the store answers again", self._journal.run_id)
            self._failures, self._slow = 0, False
            with self._changed:
                self._changed.notify_all()

    def _note(self, problem: str) -> None:
        self._failures, self._unsure, self.problem = self._failures + 1, True, problem
        if self._failures == 1:
            log.warning(
                "the store fails (%s); the run goes on, and what it says is kept in %s", problem, self._journal.folder
            )

    def _show_life(self) -> None:
        known = self._journal.identity
        if known and time.monotonic() - self._beaten > BEAT:
            self._beaten = time.monotonic()
            with suppress(Exception):
                self._beat(known)
