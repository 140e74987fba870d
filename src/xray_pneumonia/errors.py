"""Define the exceptions that the command line turns into exit codes; every module may raise them."""

import difflib
import signal
from collections.abc import Iterable


class InputError(Exception):
    """The user's input is wrong: a key, a file, a folder (exit code 2).

    The message is one line or a short list: it names the key or file, shows the value, says the cure.
    """


class Busy(InputError):
    """Another process works on this run (exit code 2)."""


class DataRefused(InputError):
    """The audit found errors in the data that would invalidate every result (exit code 2)."""


class SomeFailed(Exception):
    """The work is done, but some of the files could not be read (exit code 3)."""


class TrainingDiverged(Exception):
    """The loss is no longer a finite number (exit code 1)."""


class LoaderFailed(Exception):
    """A process that prepares batches died, hangs or has no memory left (exit code 1)."""


class Unwell(Exception):
    """`xray doctor` found problems (exit code 1)."""


class AnswersDiffer(Exception):
    """An exported model gives other answers than its source (exit code 1)."""


class CheckpointNotSaved(Exception):
    """A checkpoint could not be written; the previous one is kept (exit code 1)."""


class CheckpointDamaged(InputError):
    """The bytes of a checkpoint are not those that were written (exit code 2)."""


class NotReproduced(Exception):
    """A training from a stored config gave other results (exit code 1)."""


class Stopped(BaseException):
    """SIGTERM, SIGHUP or Ctrl-C; passes `except Exception` like KeyboardInterrupt, which Lightning ends with code 1."""

    def __init__(self, number: int) -> None:
        words = {signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal was closed"}
        super().__init__(words.get(signal.Signals(number), "interrupted"))
        self.exit_code = 128 + number


signals: list[int] = []  # those that asked this process to stop


def raise_if_stopped() -> None:
    """Raise Stopped again, where it came up in a destructor or a hook of a library, which Python and torch ignore."""
    if signals:
        raise Stopped(signals[0])


def nearest(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """Word the nearest valid name as the end of a message, or nothing."""
    close = difflib.get_close_matches(name, list(valid), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(prefix + name for name in close)}?" if close else ""
