"""Keeps the sources of the user's own modules with a run; shows the lines that changed since."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice

from omegaconf import DictConfig

from xray_pneumonia import extensions
from xray_pneumonia.errors import InputError
from xray_pneumonia.stored_config import load_stored
from xray_pneumonia.tracking.run import Run
from xray_pneumonia.tracking.stored_runs import StoredRun

FOLDER = "extensions"  # of a run's artifacts
MOST = 20  # lines shown


def keep_sources(run: Run) -> None:
    """Write the sources of the modules that the command names to a run."""
    for name, source in extensions.sources().items():
        run.path(f"{FOLDER}/{name}").write_bytes(source)


def load_config(run: StoredRun, *, origin: str) -> DictConfig:
    """Read the config of a run, as `load_stored` does, with `changes_shown`."""
    with changes_shown(run):
        return load_stored(run.config, origin=origin, sha256=run.tags["config_sha256"])


@contextmanager
def changes_shown(run: StoredRun) -> Iterator[None]:
    """Where something is refused since code of the user's own changed, show the lines that did."""
    try:
        yield
    except extensions.CodeChanged as error:
        now = extensions.sources()
        lines = chain.from_iterable(_difference(run, name, now[name]) for name in sorted(now))
        raise InputError("\n  ".join([str(error), *islice(lines, MOST)])) from error


def _difference(run: StoredRun, name: str, now: bytes) -> list[str]:
    try:
        then = run.artifact(f"{FOLDER}/{name}").read_bytes()
    except (InputError, OSError):  # it is new, or the run keeps it no longer
        then = b""
    before, after = (text.decode("utf-8", "replace").splitlines() for text in (then, now))
    return list(difflib.unified_diff(before, after, f"{name} of the run", f"{name} now", n=0, lineterm=""))
