"""Makes the database of a store, whole or not at all and in one process at a time; refuses a file that is none."""

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from xray_pneumonia.errors import InputError
from xray_pneumonia.tracking.locations import ARTIFACTS, sqlite_path, sqlite_uri
from xray_pneumonia.tracking.store_errors import query

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

LOCK_KEY = 0x78726179  # of PostgreSQL's advisory lock; "xray"
LONGEST_LOCK = "60s"  # for which a process may hold it; one that was paused or vanished must not stop all others


def make_database(uri: str, home: Path) -> None:
    """Make a new database under another name: MLflow never completes the tables of one that a kill left half made.

    It takes seconds; the caller holds a lock.

    Raises:
        StoreUnavailable: a PostgreSQL server does not answer.
        InputError: its database cannot be used.
    """
    if uri.startswith("postgresql"):
        query(uri, lambda: _make_once(uri, home))
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


def _make_once(uri: str, home: Path) -> None:
    """Make the tables of a PostgreSQL database; where two processes make them, it refuses one of the two."""
    import sqlalchemy as sa

    def has_tables() -> bool:
        known = sa.inspect(engine).has_table("alembic_version")
        with engine.connect() as connection:  # the row comes with the last table
            return known and connection.execute(sa.text("select 1 from alembic_version")).first() is not None

    engine = sa.create_engine(uri)
    try:
        if not has_tables():
            with lock_database(engine):
                if not has_tables():
                    _make_tables(uri, home)
    finally:
        engine.dispose()


def lock_database(engine: "Engine") -> "Connection":
    """Begin a transaction that holds the lock; its end gives it back, and PostgreSQL ends one that lasts too long."""
    import sqlalchemy as sa

    connection = engine.connect()
    try:
        connection.execute(sa.text(f"set local idle_in_transaction_session_timeout = '{LONGEST_LOCK}'"))
        connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
    except BaseException:
        connection.close()
        raise
    return connection


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
