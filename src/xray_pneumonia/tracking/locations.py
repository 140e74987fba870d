"""Locates the files of a local store: a moved store is repaired, and nothing outside of a store is read."""

import contextlib
import logging
import os
import re
import sqlite3
import uuid
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from xray_pneumonia.errors import InputError
from xray_pneumonia.masking import masked
from xray_pneumonia.whole_files import file_lock

ARTIFACTS = "artifacts"  # in the home: the files of a local store
STAGED = "staged"  # the same: the files of runs whose artifact store is not on this machine
LOCATIONS = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))
SERVERS = ("http", "https", "mlflow-artifacts")  # MLflow sends them the store's own password
log = logging.getLogger(__name__)


class ArtifactMissing(InputError):
    """A run has no such file."""


def is_web_address(uri: str) -> bool:
    """Tell whether a URI of http or https names a host."""
    try:
        return re.fullmatch(r"[\w.:-]+", urlsplit(uri).hostname or "") is not None and urlsplit(uri).port != 0
    except ValueError:  # of a port or of brackets
        return False


def sqlite_uri(path: Path) -> str:
    """Build the URI of a SQLite file; characters such as `?` and `#` are escaped."""
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(path)).render_as_string()


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a SQLite URI; None for other stores."""
    from sqlalchemy.engine import make_url

    return Path(make_url(uri).database or "") if uri.startswith("sqlite:") else None


def require_writable(path: Path, origin: str) -> None:
    """Raise InputError for a SQLite file that could not be written: MLflow would try ten times."""
    for place in (path, path.parent):
        if not os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise InputError(f"{origin}: {place} is not writable; make it so, or name another store")


def repair_moved(uri: str, home: Path) -> None:
    """Point the experiments, runs and models of a moved or copied SQLite store to the files that lie there now.

    MLflow writes absolute paths. An experiment is repaired only where its recorded place is outside of the store and
    a folder of its name lies in it: a copy must not write into the store that it was copied from.

    Raises:
        InputError: the store was moved, and is not writable.
    """
    path = sqlite_path(uri)
    if not path or not path.is_file():
        return
    roots = [path.resolve().parent, home.resolve()]
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection:
        moved = [(place, now) for place in _locations(connection) if (now := _moved_to(place, roots))]
        if moved:
            require_writable(path, f"tracking.uri={uri}: this store was moved, which has to be written into it")
        for before, now in moved:
            for table, column in LOCATIONS:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (now, len(before) + 1, before, len(before) + 1, f"{before}/"),
                )
            log.warning("this store was moved here; %s is %s now", before, now)
        connection.commit()


def lacks_run(path: Path, run_id: str) -> bool:
    """Tell whether a SQLite store that was removed, emptied or swapped no longer knows a run; creates no file."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=0)
        ) as connection:
            return not connection.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchall()
    except sqlite3.Error as error:
        return not path.exists() or "no such table" in str(error)


def _locations(connection: sqlite3.Connection) -> list[str]:
    try:
        for table, column in LOCATIONS:
            connection.execute(f"SELECT {column} FROM {table} LIMIT 1")
        return [str(row[0]) for row in connection.execute("SELECT artifact_location FROM experiments")]
    except sqlite3.DatabaseError:
        return []  # of another version, or damaged: whoever opens it next says so


def _moved_to(place: str, roots: list[Path]) -> str:
    """Return where the files of an experiment lie now, as a URI; nothing where they were not moved."""
    parts = urlsplit(place)
    path = Path(url2pathname(parts.path))
    if parts.scheme != "file" or not path.name or any(path.resolve().is_relative_to(root) for root in roots):
        return ""
    return next((now.as_uri() for root in roots if (now := root / ARTIFACTS / path.name).is_dir()), "")


def local_folder(uri: str, *, store_uri: str, home: Path, within: str, origin: str) -> Path | None:
    """Find the folder on this machine behind an artifact URI, which the store's writers could have set to anything.

    Args:
        uri: of a run's or a model's artifacts.
        store_uri: of the store that names it.
        home: the folder of the store's files on this machine.
        within: the experiment's location, which must hold it.
        origin: what to call it in messages: `run_id=...`.

    Returns:
        The folder, free of links; None for an object store or a server, which MLflow asks.

    Raises:
        InputError: it lies outside of the experiment, or of the store.
    """
    path, parent = _path(uri), _path(within)
    if path is None or parent is None:
        _require_same_server(store_uri, uri, origin=origin)
        if _unquoted(uri).startswith(_unquoted(within).rstrip("/") + "/") and ".." not in _unquoted(uri):
            return None
        raise _outside(origin, uri, "its experiment's")
    if not path.is_relative_to(parent) or path == parent:
        raise _outside(origin, uri, "its experiment's")
    roots = _roots(store_uri, home)
    if roots is None or any(path.is_relative_to(root) for root in roots):
        return path
    raise _outside(origin, uri, f"the store ({roots[0]}); home=DIR names the folder that holds `{ARTIFACTS}`")


def inside(folder: Path, name: str, *, origin: str) -> Path:
    """Name a file of a folder; neither `..` nor a link may lead out of it.

    Raises:
        InputError: it leads out, or is not there.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise _outside(origin, str(path), "its run's")
    if not path.exists():
        raise ArtifactMissing(f"{origin}: has no artifact {name} in {folder}")
    return path


def _roots(store_uri: str, home: Path) -> list[Path] | None:
    """List the folders in which a store keeps files here; None where the artifacts lie elsewhere."""
    database = sqlite_path(store_uri)
    if database is not None:
        return [home.resolve(), database.resolve().parent]
    return [home.resolve()] if urlsplit(store_uri).scheme in {"http", "https"} else None


def _require_same_server(store_uri: str, uri: str, *, origin: str) -> None:
    """Refuse a place on a server that is not the store's: asking it would send it the store's password."""
    place = urlsplit(_unquoted(uri))
    host, known = (parts.netloc.rpartition("@")[2] for parts in (place, urlsplit(store_uri)))
    if place.scheme in SERVERS and host != known and (host or place.scheme != "mlflow-artifacts"):
        raise _outside(origin, uri, "the store's server")


def _path(uri: str) -> Path | None:
    parts = urlsplit(uri)
    if parts.scheme not in {"", "file"}:
        return None
    if parts.netloc not in {"", "localhost"}:
        raise InputError(f"{masked(uri)}: lies on another machine; nothing is read from there")
    return Path(url2pathname(parts.path)).resolve()


def _unquoted(uri: str) -> str:
    """Undo percent signs, however often they were applied."""
    while unquote(uri) != uri:
        uri = unquote(uri)
    return uri


def _outside(origin: str, uri: str, what: str) -> InputError:
    return InputError(f"{origin}: its artifacts ({masked(uri)}) lie outside of {what}; nothing is read from there")


def artifact_folder(home: Path, run_id: str, uri: str | None) -> Path:
    """Make the folder of a run's files: the artifact folder itself, or a staged one where that cannot be written."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    staged = home / STAGED / run_id
    if uri is not None and uri.startswith(("file:", "/")) and not staged.is_dir():
        folder = Path(local_file_uri_to_path(uri))
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{uuid.uuid4().hex}"
            probe.write_bytes(b"x")
            probe.unlink()
            return folder
        log.warning("%s cannot be written; the run's files are kept in %s until it can", folder, staged)
    staged.mkdir(parents=True, exist_ok=True)
    return staged


def creation_lock(uri: str, home: Path) -> FileLock:
    """Let one process at a time create tables; a database file is locked by a file in its own folder, not in `home`."""
    path = sqlite_path(uri)
    folder = path.absolute().parent if path else home
    folder.mkdir(parents=True, exist_ok=True)
    return file_lock(folder / ".store.lock")
