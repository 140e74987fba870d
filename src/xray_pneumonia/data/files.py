"""List the files of a folder in one order without opening them, under printable names; find files that changed."""

import codecs
import errno
import logging
import os
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xray_pneumonia.errors import DataRefused, InputError
from xray_pneumonia.whole_files import file_sha256

if TYPE_CHECKING:
    import pandas as pd  # decoding processes import this module and have no use for pandas

JUNK = {"Thumbs.db", "desktop.ini", "__MACOSX"}
TEXTS = {
    ".cfg", ".csv", ".htm", ".html", ".ini", ".json", ".log", ".md", ".rst", ".tsv", ".txt", ".xml", ".yaml", ".yml",
}  # fmt: skip
TEXTS_BY_NAME = {"LICENCE", "LICENSE", "README"}
LINK_TO_FOLDER = ("link_to_folder", "is a link to a folder; links are not followed")
UNREADABLE_FOLDER = ("unreadable", "is a folder that cannot be read")
MISSING = "missing"  # the stamp of a file that does not exist
SHOWN = 10  # names in a message
UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # Unicode categories
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputFile:
    """One file below a folder."""

    path: str
    id: str  # its path relative to the folder, printable
    stamp: str  # what the file system knows of it; it changes when the file does
    refusal: tuple[str, str] | None = None  # why it must not be opened: a code and a message


def find_files(root: Path) -> Iterator[InputFile]:
    """Yield the files below a folder, or the one file that is named, folder by folder in the order of the names.

    Links are followed to files within the folder and nowhere else.
    """
    if not root.is_dir():
        yield _described(root, root.parent, within="")
        return
    within = os.path.realpath(root) + os.sep
    for path in walk(root):
        yield _described(Path(path), root, within=within)


def find_films(root: Path) -> Iterator[InputFile]:
    """Yield the files that may be films: all but the texts among them; a file that is named itself is always one."""
    return (file for file in find_files(root) if not root.is_dir() or not is_text(file.path))


def is_text(path: str) -> bool:
    """Tell a file that is no film by its name and by its first bytes, which are text; links are not followed."""
    name, suffix = os.path.splitext(os.path.basename(path))
    if suffix.lower() not in TEXTS and (suffix or name.upper() not in TEXTS_BY_NAME):
        return False
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
        with open(path, "rb") as file:
            start = codecs.getincrementaldecoder("utf-8-sig")().decode(file.read(2048))  # the last sign may be cut
    except (OSError, UnicodeDecodeError):
        return False
    return "\0" not in start


def shown(names: list[str]) -> str:
    """List the first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _described(path: Path, root: Path, *, within: str) -> InputFile:
    name = printable(os.path.relpath(path, root))

    def refused(code: str, message: str) -> InputFile:
        return InputFile(str(path), name, MISSING, (code, message))

    if not os.path.realpath(path).startswith(within):
        return refused("link_outside_root", "is a link that leads out of the folder")
    try:
        facts = os.stat(path)
    except OSError as error:
        return refused("unreadable", f"cannot be opened: {error.strerror}")
    if stat.S_ISDIR(facts.st_mode):
        return refused(*(LINK_TO_FOLDER if path.is_symlink() else UNREADABLE_FOLDER))
    if not stat.S_ISREG(facts.st_mode):
        return refused("not_a_file", "is a pipe, socket or device, not a regular file")
    return InputFile(str(path), name, _stamp(facts))


def stamp_of(path: str | Path) -> tuple[int, str]:
    """Return the size of a file in bytes and its stamp; 0 and `MISSING` where there is none."""
    try:
        facts = os.stat(path)
    except OSError:
        return 0, MISSING
    return facts.st_size, _stamp(facts)


def _stamp(facts: os.stat_result) -> str:
    return f"{facts.st_ino}-{facts.st_size}-{facts.st_mtime_ns}-{facts.st_ctime_ns}"


def walk(folder: Path) -> Iterator[str]:
    """Yield the paths of files at any depth, but hidden files and those that operating systems leave behind.

    A link to a folder is yielded like a file, and so is a folder that cannot be read, for whoever opens it to refuse.

    Raises:
        OSError: the folder itself cannot be read.
    """
    os.scandir(folder).close()
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        refused = [name for name in folders if not _may_enter(os.path.join(here, name))]
        for name in sorted([*(name for name in files if not is_hidden(name)), *refused]):
            yield os.path.join(here, name)


def walk_all(folder: Path) -> Iterator[str]:
    """Yield what `walk` yields.

    Raises:
        OSError: the folder, or one in it, cannot be read, so that its files would be left out.
    """
    for path in walk(folder):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            os.scandir(path).close()  # raises what kept `walk` out of it
        yield path


@contextmanager
def all_or_none() -> Iterator[None]:
    """Refuse data with a folder or file that cannot be read; decorates functions that list them.

    Raises:
        InputError: there is one.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        why = "its path is too long" if error.errno == errno.ENAMETOOLONG else error.strerror
        raise InputError(
            f"{os.fsdecode(error.filename)}: cannot be read ({why}); its images would be left out; give yourself the "
            "right to read it, shorten its path, or move it out of the data"
        ) from error


def walk_films(folder: Path) -> Iterator[str]:
    """Yield what `walk_all` yields, but the texts, which are named."""
    texts = []
    for path in walk_all(folder):
        if is_text(path):
            texts.append(printable(os.path.relpath(path, folder)))
        else:
            yield path
    if texts:
        log.warning("%s: no X-rays, left out: %d (%s)", folder, len(texts), shown(texts))


def _may_enter(folder: str) -> bool:
    """Tell whether `os.walk` will list a folder, which it leaves out without a word otherwise."""
    try:
        os.scandir(folder).close()
    except OSError:
        return False
    return not os.path.islink(folder)


def is_hidden(name: str) -> bool:
    """Tell a file that no user put there by its name."""
    return name.startswith(".") or name in JUNK


def printable(name: str) -> str:
    r"""Write a file's name so that it fits any log, table and page, and no two names look the same.

    Bytes that are no UTF-8 become `\xff`, control characters and marks that turn the direction of writing
    become `\n` or `\u202e`, a backslash becomes two.
    """
    text = os.fsencode(name).decode("utf-8", "surrogateescape").replace("\\", "\\\\")
    return "".join(_escaped(one) if unicodedata.category(one) in UNPRINTABLE else one for one in text)


def _escaped(one: str) -> str:
    if "\udc80" <= one <= "\udcff":
        return f"\\x{ord(one) - 0xDC00:02x}"
    return one.encode("unicode_escape").decode("ascii")


def require_unchanged(records: "pd.DataFrame") -> None:
    """Check that the files of the records are those that were read, which the image cache would hide.

    Raises:
        DataRefused: some are gone or changed, so the run would name data that no longer exist.
    """
    if found := changed(records):
        more = f"\n  and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise DataRefused(
            f"{len(found)} files of the data changed while the run went on; bring them back, or train again on the "
            "files as they are now:\n  " + "\n  ".join(found[:SHOWN]) + more
        )


def changed(records: "pd.DataFrame") -> list[str]:
    """Name the files that are not as they were, each with what happened to it.

    Only a file whose stamp differs is read again: a backup or a chmod changes the stamp and not the bytes.
    """
    found = []
    rows = records.loc[records["path"] != "", ["id", "path", "stamp", "sha256"]].astype(object).to_numpy().tolist()
    for name, path, known, sha256 in rows:
        _, stamp = stamp_of(path)
        if stamp == MISSING != known:
            found.append(f"{name}: is gone")
        elif stamp != known and _sha256(path) != sha256:
            found.append(f"{name}: was changed")
    return found


def _sha256(path: str) -> str:
    try:
        return file_sha256(path)
    except OSError:
        return ""
