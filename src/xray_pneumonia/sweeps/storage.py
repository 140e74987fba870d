"""Opens the database of the studies, locks it between processes, and repeats what fails while it is unavailable."""

import contextlib
import logging
import math
import os
import sqlite3
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import optuna
import psutil
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from xray_pneumonia.errors import InputError
from xray_pneumonia.masking import masked
from xray_pneumonia.tracking.database import lock_database
from xray_pneumonia.tracking.locations import sqlite_path, sqlite_uri
from xray_pneumonia.whole_files import file_lock

RETRY_SECONDS = 120.0  # for a database that restarts or is locked
BUSY_TIMEOUT = 30.0  # seconds to wait at the start for a SQLite file that another program has locked
HEARTBEAT_SECONDS = 10
NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse", "9p", "afs", "orangefs")
UNAVAILABLE = (OperationalError, InterfaceError, StorageInternalError)
optuna.logging.set_verbosity(optuna.logging.ERROR)
log = logging.getLogger(__name__)
T = TypeVar("T")
_failed_at = [-math.inf]  # when the database last did not answer


class _Storage(RDBStorage):
    def __init__(self, url: str, **settings: Any) -> None:
        try:
            super().__init__(url, **settings)
        except BaseException:
            if "engine" in vars(self):  # it may hold a connection
                self.engine.dispose()
            raise
        weakref.finalize(self, self.engine.dispose)

    def record_heartbeat(self, trial_id: int) -> None:
        """Record a heartbeat, or none: an error would end Optuna's thread, and with it all later heartbeats."""
        try:
            super().record_heartbeat(trial_id)
        except (SQLAlchemyError, StorageInternalError):
            note_failure()


def note_failure() -> None:
    """Note that the database does not answer."""
    _failed_at[0] = time.monotonic()


def just_failed() -> bool:
    """Tell whether the database did not answer a moment ago, so that living processes may seem silent."""
    return time.monotonic() - _failed_at[0] < 3 * HEARTBEAT_SECONDS


def resolve(url: str | None, home: Path) -> str:
    """Choose the database: the config's, else XRAY_SWEEP_STORAGE, else SQLite in `home`.

    Raises:
        InputError: the URL is of no kind that can hold studies.
    """
    chosen = url or os.environ.get("XRAY_SWEEP_STORAGE") or sqlite_uri(home.resolve() / "sweeps.db")
    scheme = urlsplit(chosen).scheme
    if scheme == "postgres":
        raise InputError(f"sweep.storage={masked(chosen)}: write postgresql:// instead of postgres://")
    if scheme.partition("+")[0] not in {"sqlite", "postgresql"}:
        raise InputError(f"sweep.storage={masked(chosen)}: write sqlite:////FILE or postgresql://USER@HOST/DATABASE")
    if scheme == "postgresql":  # which driver that means depends on SQLAlchemy's version
        return chosen.replace("postgresql://", "postgresql+psycopg2://", 1)
    return chosen


@lru_cache(maxsize=4)
def open_storage(url: str, *, stale_after: int = 120) -> RDBStorage:
    """Connect, once in each process, and create the tables where they are missing.

    Args:
        url: of the database.
        stale_after: seconds without a heartbeat after which a trial counts as stale.

    Raises:
        InputError: the database is locked, read-only, of another version, another program's, or none at all.
    """
    shown = f"sweep.storage={masked(url)}"
    if (path := sqlite_path(url)) is not None:
        _require_sqlite(path.absolute(), shown)
    try:
        _require_own_tables(url, shown)
        with _creation_lock(url):
            return _connect(url, stale_after)
    except RuntimeError as error:  # Optuna raises it for tables of another version
        raise InputError(
            f"{shown}: made by another version of Optuna; back it up, then `optuna storage upgrade --storage URL` "
            f"({' '.join(str(error).split())})"
        ) from error
    except ModuleNotFoundError as error:
        raise InputError(f"{shown}: {error}; install xray-pneumonia[postgresql]") from error
    except (SQLAlchemyError, StorageInternalError) as error:
        raise InputError(f"{shown}: the database does not answer: {masked(_first_line(error))}") from error


def _connect(url: str, stale_after: int) -> RDBStorage:
    timeout = {"timeout": 60} if url.startswith("sqlite") else {"connect_timeout": 10}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
        storage = _Storage(
            url,
            engine_kwargs={"pool_pre_ping": True, "connect_args": timeout},
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=stale_after,
        )
    if storage.engine.name == "postgresql":
        sa.event.listen(storage.engine, "connect", _use_utc)
    elif not _on_network(Path(str(storage.engine.url.database))):
        sa.event.listen(storage.engine, "connect", _use_write_ahead_log)
    storage.engine.dispose()  # connections that were opened before
    return storage


def _use_utc(connection: Any, _: object) -> None:
    """Let `now()` be UTC: Optuna compares heartbeats as local times, which differ by client and jump twice a year."""
    with connection.cursor() as cursor:
        cursor.execute("set time zone 'UTC'")
    connection.commit()


def _on_network(path: Path) -> bool:
    """Tell whether a file lies in a network folder, where a write-ahead log damages what several machines write."""
    mounts = {Path(each.mountpoint): each.fstype for each in psutil.disk_partitions(all=True)}
    folder = next((each for each in path.resolve().parents if each in mounts), None)
    return folder is not None and mounts[folder].lower().startswith(NETWORK)


def _use_write_ahead_log(connection: sqlite3.Connection, _: object) -> None:
    """Let SQLite commit without waiting for the disk, for a trial takes a dozen commits.

    A killed process loses nothing by it, a power cut the last moments at most, never the file.
    """
    if connection.execute("pragma journal_mode=wal").fetchone() == ("wal",):
        connection.execute("pragma synchronous=normal")


def _first_line(error: BaseException) -> str:
    return (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _creation_lock(url: str) -> Iterator[None]:
    """Create tables in one process at a time: where two make them, PostgreSQL refuses one of the two."""
    if (path := sqlite_path(url)) is not None:
        with file_lock(f"{path}.lock"):
            yield
        return
    engine = sa.create_engine(url)
    try:
        with lock_database(engine):
            yield
    finally:
        engine.dispose()


def _require_sqlite(path: Path, shown: str) -> None:
    """Refuse a file that cannot be written as a database, before anything touches it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise InputError(f"{shown}: {path} is a folder")
    if not path.exists():
        return
    with path.open("rb") as file:
        head = file.read(16)
    if head and head != b"SQLite format 3\0":
        raise InputError(f"{shown}: {path} is no SQLite database; move it away or name another")
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT)
        ) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
    except sqlite3.Error as error:
        raise InputError(f"{shown}: {path} cannot be written: {error}") from error


def _require_own_tables(url: str, shown: str) -> None:
    """Refuse a database whose version table is another program's: MLflow's, say."""
    engine = sa.create_engine(url)
    try:
        if not sa.inspect(engine).has_table("alembic_version"):
            return
        with engine.connect() as connection:
            versions = [str(row[0]) for row in connection.execute(sa.text("select version_num from alembic_version"))]
    finally:
        engine.dispose()
    if any(not version.startswith("v") for version in versions):
        raise InputError(
            f"{shown}: holds another program's tables (MLflow's, perhaps); studies need their own database"
        )


@contextlib.contextmanager
def locked(storage: RDBStorage) -> Iterator[None]:
    """Let one process at a time count trials and ask for more, on one machine or, with PostgreSQL, on many."""
    if storage.engine.name != "postgresql":
        with file_lock(f"{storage.engine.url.database}.lock"):
            yield
        return
    connection = retried(lambda: lock_database(storage.engine))
    try:
        yield
    finally:
        try:
            connection.rollback()
        except SQLAlchemyError as error:
            log.warning("the lock of the sweep's database was lost meanwhile: %s", masked(_first_line(error)))
        connection.close()


def lost_connection(error: BaseException | None) -> bool:
    """Tell whether a database that became unavailable caused an error; MLflow passes on no more than its text."""
    while error is not None:
        if isinstance(error, UNAVAILABLE) or (
            type(error).__name__ == "MlflowException" and "OperationalError" in str(error)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def retried(action: Callable[[], T]) -> T:
    """Repeat an action while the database restarts or is locked, for at most `RETRY_SECONDS`."""
    end = time.monotonic() + RETRY_SECONDS
    pause = 0.2
    while True:
        try:
            return action()
        except UNAVAILABLE as error:
            note_failure()
            if time.monotonic() > end:
                raise
            log.warning("the sweep's database does not answer, trying again: %s", masked(_first_line(error)))
            time.sleep(pause)
            pause = min(2 * pause, 5)
