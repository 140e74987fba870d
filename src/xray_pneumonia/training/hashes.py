"""The SHA-256 beside each checkpoint, in the form that `sha256sum -c` reads.

It is written before the file gets its name, with that of the file it replaces, so that whatever a kill leaves under a
name can be told from damage.
"""

import hashlib
import os
import stat
from pathlib import Path

from xray_pneumonia.errors import CheckpointDamaged

LAST = "last.ckpt"
PREVIOUS = "last.prev.ckpt"  # what `last.ckpt` was before; the way back when that one is damaged


def verify(path: Path) -> None:
    """Compare a file with the hash beside it.

    Raises:
        CheckpointDamaged: it is no regular file, cannot be read, or is not what was written.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise CheckpointDamaged(f"{path}: damaged: it is a link or no file at all")
        found = digest(path)
    except OSError as error:
        raise CheckpointDamaged(f"{path}: damaged: {error.strerror}") from error
    known = recorded(path.with_name(LAST) if path.name == PREVIOUS else path)
    if found not in known:
        written = f"not {known[0][:12]}..., which was written" if known else "and no hash is beside it"
        raise CheckpointDamaged(
            f"{path}: damaged: {path.stat().st_size} bytes whose sha256 is {found[:12]}..., {written}"
        )


def is_whole(path: Path) -> bool:
    """Tell whether `verify` lets a file pass."""
    try:
        verify(path)
    except CheckpointDamaged:
        return False
    return True


def record(path: Path, digests: list[str]) -> None:
    """Write the hash of a file, and of the one before it where it is kept or still there."""
    names = [path.name, PREVIOUS if path.name == LAST else path.name]
    draft = path.with_name(f".{path.name}.sha256.tmp")
    try:
        with draft.open("w", encoding="ascii") as file:
            file.writelines(f"{one}  {name}\n" for one, name in zip(digests, names, strict=False))
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, beside(path))
    finally:
        draft.unlink(missing_ok=True)


def recorded(path: Path) -> list[str]:
    """Read the hashes that a file may have, the newest first; none where none is beside it."""
    sums = beside(path)
    return [line[:64] for line in sums.read_text(encoding="ascii").splitlines()] if sums.is_file() else []


def beside(path: Path) -> Path:
    """Name the file of its hashes."""
    return path.with_name(f"{path.name}.sha256")


def digest(path: Path) -> str:
    """Hash a file, in 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
