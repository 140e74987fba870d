"""Which files a folder holds, in one order, none of them opened; names that can be printed anywhere."""

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xray_pneumonia.errors import DataRefused

if TYPE_CHECKING:
    import pandas as pd  # decoding processes import this module and have no use for pandas

JUNK = {"Thumbs.db", "desktop.ini", "__MACOSX"}
LINK_TO_FOLDER = ("link_to_folder", "is a link to a folder; links are not followed")
MISSING = "missing"  # the stamp of a file that is not there
SHOWN = 10  # names in a message


@dataclass(frozen=True)
class Found:
    """One file below a folder.

    Args:
        path: where it is.
        id: its path relative to the folder, printable.
        stamp: what the file system knows of it; it changes when the file does.
        refusal: why it must not be opened, as a code and a message; none for a regular file.
    """

    path: str
    id: str
    stamp: str
    refusal: tuple[str, str] | None = None


def find_files(root: Path) -> Iterator[Found]:
    """Yield what lies below a folder, or the one file that is named, folder by folder in the order of the names.

    Links are followed to files within the folder and nowhere else.
    """
    if not root.is_dir():
        yield _found(root, root.parent, within=None)
        return
    within = os.path.realpath(root) + os.sep
    for path in walk(root):
        yield _found(Path(path), root, within=within)


def _found(path: Path, root: Path, *, within: str | None) -> Found:
    name = printable(os.path.relpath(path, root))
    if within and not os.path.realpath(path).startswith(within):
        return Found(str(path), name, MISSING, ("link_outside_root", "is a link that leads out of the folder"))
    try:
        facts = os.stat(path)
    except OSError as error:
        return Found(str(path), name, MISSING, ("unreadable", f"cannot be opened: {error.strerror}"))
    if stat.S_ISDIR(facts.st_mode):
        return Found(str(path), name, MISSING, LINK_TO_FOLDER)
    if not stat.S_ISREG(facts.st_mode):
        return Found(str(path), name, MISSING, ("not_a_file", "is a pipe, socket or device, not a regular file"))
    return Found(str(path), name, stamp(facts))


def stamp_of(path: str | Path) -> tuple[os.stat_result | None, str]:
    """Ask the file system what it knows of a file; nothing, and `MISSING`, where there is none."""
    try:
        facts = os.stat(path)
    except OSError:
        return None, MISSING
    return facts, stamp(facts)


def stamp(facts: os.stat_result) -> str:
    """Write what the file system knows of a file."""
    return f"{facts.st_ino}-{facts.st_size}-{facts.st_mtime_ns}-{facts.st_ctime_ns}"


def walk(folder: Path) -> Iterator[str]:
    """Yield the paths of files at any depth; hidden files and what systems leave behind are passed over.

    A link to a folder is yielded like a file, for whoever opens it to refuse: what lies behind it is not read.
    """
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        linked = [name for name in folders if os.path.islink(os.path.join(here, name))]
        for name in sorted([*(name for name in files if not is_hidden(name)), *linked]):
            yield os.path.join(here, name)


def is_hidden(name: str) -> bool:
    """Tell what no user put there."""
    return name.startswith(".") or name in JUNK


def printable(name: str) -> str:
    r"""Write a file's name so that it fits any log, table and page, and no two names look the same.

    Bytes that are no UTF-8 become `\xff`, control characters and marks that turn the direction of writing
    become `\n` or `\u202e`, a backslash becomes two.
    """
    text = os.fsencode(name).decode("utf-8", "surrogateescape").replace("\\", "\\\\")
    return "".join(one if _is_plain(one) else _escaped(one) for one in text)


def _is_plain(one: str) -> bool:
    return unicodedata.category(one) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def _escaped(one: str) -> str:
    if "\udc80" <= one <= "\udcff":
        return f"\\x{ord(one) - 0xDC00:02x}"
    return one.encode("unicode_escape").decode("ascii")


def require_unchanged(records: "pd.DataFrame") -> None:
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


def changed(records: "pd.DataFrame") -> list[str]:
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
