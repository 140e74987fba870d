"""Signals that wait for a safe moment: the end of a step, where a checkpoint can be written first."""

import signal
import sys
import threading
from types import FrameType
from typing import Any

PATIENCE = 25.0  # seconds until it stops all the same; Slurm kills thirty after its SIGTERM
NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """Note SIGTERM or Ctrl-C, and hand it on to whoever handled it before when `obey` is called.

    After `PATIENCE` it is handed on wherever the training stands.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._number: int | None = None
        self._late = False
        self._timer: threading.Timer | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal waits."""
        return self._number is not None

    def arm(self) -> None:
        """Begin to hold signals back; Python lets the main thread alone do so."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = {number: signal.signal(number, self._note) for number in NUMBERS}

    def disarm(self) -> None:
        """Let signals through again."""
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def obey(self) -> None:
        """Hand the noted signal on, which as a rule raises."""
        number, self._number = self._number, None
        self.disarm()
        if number is None:
            return
        handler = signal.getsignal(number)
        if callable(handler):
            handler(number, None)
        else:
            signal.raise_signal(number)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._late:
            self.obey()
        elif self._number is None:
            self._number = number
            self._timer = threading.Timer(PATIENCE, self._overdue)
            self._timer.daemon = True
            self._timer.start()
            print("xray: stopping as soon as a checkpoint is written", file=sys.stderr)
        else:
            print("xray: already stopping, a checkpoint is written first", file=sys.stderr)

    def _overdue(self) -> None:
        self._late = True
        main, number = threading.main_thread().ident, self._number
        if main is not None and number is not None:
            signal.pthread_kill(main, number)
