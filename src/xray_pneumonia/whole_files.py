"""Writes files whole or not at all, and hashes them; any package may import it."""

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


def write_whole(path: Path, parts: Iterable[bytes], *, sync: bool = True, shared: bool = False) -> None:
    """Replace a file; until then, and if this fails, the earlier one stays as it is.

    Args:
        path: of the file; the draft stands next to it, as `.NAME.tmp` or `.NAME.WRITER.tmp`.
        parts: of its content.
        sync: wait until the disk has the content, as far as a power cut is to change nothing.
        shared: several processes or threads may write it at once.
    """
    writer = f".{os.getpid()}-{threading.get_ident()}" if shared else ""
    draft = path.with_name(f".{path.name}{writer}.tmp")
    try:
        with draft.open("wb") as file:
            file.writelines(parts)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read_regular(path: str | Path) -> bytes:
    """Read a file; raises OSError for pipes, which would be waited for, and devices, which may have no end."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "is a pipe or device, not a regular file", str(path))
        return file.read()


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names of a folder's files, which a power cut might undo."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_lock(path: str | Path) -> FileLock:
    """Lock a file between processes; raises OSError where it cannot be made, for which FileLock would wait for ever."""
    Path(path).touch()
    return FileLock(path)


@contextmanager
def private(*, team: bool = False) -> Iterator[None]:
    """Make new files and folders the user's alone: names of films and thumbnails name patients.

    Args:
        team: they lie in a store; where the umask lets the group write, a team shares it, and the group keeps access.
    """
    before = os.umask(0o077)
    if team and not before & 0o020:
        os.umask(before | 0o007)
    try:
        yield
    finally:
        os.umask(before)


def file_sha256(path: str | Path) -> str:
    """Hash a file: 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
