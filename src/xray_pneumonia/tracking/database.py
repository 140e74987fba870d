"""Makes the SQLite database of a store whole or not at all, and refuses a file that is none."""

import logging
import os
import time
from pathlib import Path

from xray_pneumonia.errors import InputError
from xray_pneumonia.tracking.locations import ARTIFACTS, sqlite_path, sqlite_uri


def make_database(uri: str, home: Path) -> None:
    """Make a new database under another name: MLflow never completes the tables of one that a kill left half made.

    It takes seconds; the caller holds a lock.
    """
    if not (path := sqlite_path(uri)) or path.exists():
        return
    for left in path.parent.iterdir():
        if left.name.startswith(f".{path.name}.") and left.suffix.startswith(".tmp"):  # its journal too
            left.unlink()
    draft = path.with_name(f".{path.name}.{time.time_ns()}.tmp")  # SQLAlchemy keeps connections to a name
    _make_tables(sqlite_uri(draft), home)
    os.replace(draft, path)


def renew_database(uri: str, home: Path) -> None:
    """Make the tables of a SQLite database that was removed or emptied under MLflow, which has it open."""
    for _ in range(2):  # connections to the file that was removed see its tables still
        _make_tables(uri, home)


def _make_tables(uri: str, home: Path) -> None:
    quieten()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(uri, (home.resolve() / ARTIFACTS).as_uri()).engine.dispose()


def quieten() -> None:
    """Keep the libraries of a store from logging what the user is told otherwise."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks, passwords and all
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # every single retry


def require_database(uri: str) -> None:
    """Refuse a file that is no SQLite database before anything touches it."""
    path = sqlite_path(uri)
    if path and path.exists() and not _is_sqlite(path):
        raise InputError(f"tracking.uri={uri}: {path} is no SQLite database; move it away or name another store")


def _is_sqlite(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"
