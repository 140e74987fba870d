"""Are the files still those that were read? The cache would hide that they are not."""

import hashlib

import pandas as pd

from xray_pneumonia.data.files import MISSING, stamp_of
from xray_pneumonia.errors import DataRefused

SHOWN = 10  # names in a message


def require_unchanged(records: pd.DataFrame) -> None:
    """Look whether the files are as they were when they were read; one question to the file system for each.

    Raises:
        DataRefused: some are gone or changed, so the run would name data that are no longer there.
    """
    if found := changed(records):
        more = f"\n  and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise DataRefused(
            f"{len(found)} files of the data changed while the run went on; bring them back, or train again on what is "
            "there now:\n  " + "\n  ".join(found[:SHOWN]) + more
        )


def changed(records: pd.DataFrame) -> list[str]:
    """Name the files that are no longer what they were, each with what became of it.

    Only a file whose stamp differs is read again: a backup or a chmod changes the stamp and not the bytes.
    """
    found = []
    rows = records.loc[records["path"] != "", ["id", "path", "stamp", "sha256"]].astype(object).to_numpy().tolist()
    for name, path, known, sha256 in rows:
        facts, stamp = stamp_of(path)
        if facts is None and known != MISSING:
            found.append(f"{name}: is gone")
        elif stamp != known and _digest(path) != sha256:
            found.append(f"{name}: was changed")
    return found


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
