"""The exceptions that the command line turns into exit codes; every module may raise them."""

import signal


class InputError(Exception):
    """The user's input is wrong: a key, a file, a folder (exit code 2).

    The message is one line or a short list: it names the key or file, shows the value, says the cure.
    """


class Busy(InputError):
    """A living process is at this run (exit code 2)."""


class DataRefused(InputError):
    """The audit found errors in the data that would make every figure a lie (exit code 2)."""


class SomeFailed(Exception):
    """The work is done, but some of the files could not be read (exit code 3)."""


class TrainingDiverged(Exception):
    """The loss is no longer a finite number, so nothing that follows can be trusted (exit code 1)."""


class LoaderFailed(Exception):
    """A process that prepares batches died, hangs or has no room (exit code 1)."""


class Unwell(Exception):
    """`xray doctor` found what a person must see to (exit code 1)."""


class AnswersDiffer(Exception):
    """An exported model does not answer as the one it was made of (exit code 1)."""


class CheckpointNotSaved(Exception):
    """A checkpoint could not be written; the one before it is still there (exit code 1)."""


class CheckpointDamaged(InputError):
    """A checkpoint is not what was written (exit code 2)."""


class NotReproduced(Exception):
    """A training from a stored config came out different (exit code 1)."""


class Stopped(BaseException):
    """SIGTERM or Ctrl-C; like KeyboardInterrupt it passes every `except Exception`.

    It is no KeyboardInterrupt, which Lightning would turn into exit code 1.
    """

    def __init__(self, number: int) -> None:
        super().__init__("terminated" if number == signal.SIGTERM else "interrupted")
        self.exit_code = 128 + number
