"""A store that was moved or copied with its folder: MLflow wrote absolute paths into it, which are mended."""

import contextlib
import logging
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

ARTIFACTS = "artifacts"  # beside the database
PLACES = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))
log = logging.getLogger(__name__)


def follow(database: Path) -> None:
    """Point experiments, runs and models of a SQLite store to the files that lie beside it now.

    An experiment is mended only where its files are recorded outside of the database's folder and a folder of its
    name lies in `artifacts` beside it: a copy must not write into the store that it was copied from.
    """
    home = database.resolve().parent
    if not database.is_file() or not (home / ARTIFACTS).is_dir():
        return
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as connection:
        for before in _strangers(connection, home):
            now = (home / ARTIFACTS / Path(before).name).as_uri()
            for table, column in PLACES:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (now, len(before) + 1, before, len(before) + 1, f"{before}/"),
                )
            log.warning("this store was moved here; %s is %s now", before, now)
        connection.commit()


def _strangers(connection: sqlite3.Connection, home: Path) -> list[str]:
    """List the experiments' places outside of this store whose files lie in it."""
    try:
        rows = connection.execute("SELECT artifact_location FROM experiments").fetchall()
        for table, column in PLACES:
            connection.execute(f"SELECT {column} FROM {table} LIMIT 1")
    except sqlite3.DatabaseError:
        return []  # another version's, or damaged: whoever opens it next says so
    found = []
    for (place,) in rows:
        parts = urlsplit(str(place))
        path = Path(url2pathname(parts.path))
        inside = path.resolve().is_relative_to(home)
        named = path.name not in {"", ".."} and (home / ARTIFACTS / path.name).is_dir()
        if parts.scheme == "file" and not inside and named:
            found.append(str(place))
    return found
