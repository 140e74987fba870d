"""Checkpoints that are whole or not there: written aside, flushed, read back, hashed, then renamed.

Beside each file stands its SHA-256, in the form that `sha256sum -c` reads. The hash is written before the rename,
with that of the file it replaces, so that whatever a kill leaves under a name can be told from damage.
"""

import hashlib
import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO

from xray_pneumonia.errors import CheckpointDamaged, CheckpointNotSaved, InputError
from xray_pneumonia.training.room import shortage

LAST = "last.ckpt"
PREVIOUS = "last.prev.ckpt"  # what `last.ckpt` was before; the way back when that one is damaged
DAMAGED = "last.damaged.ckpt"
BEST = "best.ckpt"
STATE = "xray"  # the key of a checkpoint under which `keeper.Keeper` keeps what Lightning does not
LIGHTNING = version("pytorch-lightning")
log = logging.getLogger(__name__)


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's own way stages in TMPDIR and can leave half a file, or none, and call it saved."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Replace `path` at once; the earlier file stays whole until the new one has been read back.

        Raises:
            CheckpointNotSaved: the disk is full, the folder cannot be written, or the like.
        """
        path = Path(path)
        try:
            _replace(path, checkpoint)
        except (OSError, RuntimeError) as error:  # torch words a full disk as a RuntimeError
            raise CheckpointNotSaved(f"{path}: cannot be saved: {shortage(path.parent, checkpoint)}{error}") from error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read tensors and plain values, never code."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)  # type: ignore[no-any-return]

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint that a better one replaced."""
        Path(path).unlink(missing_ok=True)
        _sums(Path(path)).unlink(missing_ok=True)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is whole: where in the training it stands, and of which config and data.

    Args:
        path: of the file.
        epoch: epochs completed.
        batch: batches of the next epoch that are done.
        trained: whether nothing is left to train.
        identity: what must be the same for going on from it.
    """

    path: Path
    epoch: int
    batch: int
    trained: bool
    identity: Mapping[str, str]

    @property
    def where(self) -> str:
        """The position in words."""
        if self.trained:
            return f"after its last epoch, {self.epoch}"
        return f"after {self.batch} batches of epoch {self.epoch + 1}" if self.batch else f"after epoch {self.epoch}"


def newest_valid(folder: Path) -> Saved | None:
    """Find the newest whole checkpoint to go on from, loudly where the newest one is damaged; None where none is.

    Raises:
        InputError: there are checkpoints, and all are damaged, or the newest whole one is of another Lightning.
    """
    problems = []
    for name in (LAST, PREVIOUS):
        if not os.path.lexists(folder / name):
            continue
        try:
            saved = _read(folder / name)
        except CheckpointDamaged as error:
            problems.append(str(error))
            continue
        for problem in problems:
            log.error("%s; going back to %s, %s", problem, name, saved.where)
        return saved
    if problems:
        raise InputError("\n  ".join(["no checkpoint is whole, so nothing can go on from here:", *problems]))
    return None


def clear(folder: Path, saved: Saved) -> None:
    """Remove what a kill left half written, put a damaged `last.ckpt` aside, and record the hashes of what is there.

    A kill may have come between a hash and its file; the next save keeps the first hash alone.

    Args:
        folder: of the checkpoints.
        saved: the one that the training goes on from.
    """
    for draft in folder.glob(".*.tmp"):
        log.info("removing %s, which a stopped run left half written", draft.name)
        draft.unlink()
    if saved.path.name != LAST and os.path.lexists(folder / LAST):
        os.replace(folder / LAST, folder / DAMAGED)
    previous = folder / PREVIOUS
    also = [_digest(previous)] if saved.path.name == LAST and previous.is_file() and _is_whole(previous) else []
    _record(folder / LAST, [_digest(saved.path), *also])
    if (folder / BEST).is_file() and _is_whole(folder / BEST):
        _record(folder / BEST, [_digest(folder / BEST)])


def drop_previous(folder: Path) -> None:
    """Remove the way back once the training is over."""
    (folder / PREVIOUS).unlink(missing_ok=True)
    _record(folder / LAST, [_recorded(folder / LAST)[0]])


def verify(path: Path) -> None:
    """Compare a file with the hash beside it.

    Raises:
        CheckpointDamaged: it is no regular file, cannot be read, or is not what was written.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise CheckpointDamaged(f"{path}: damaged: it is a link or no file at all")
        found = _digest(path)
    except OSError as error:
        raise CheckpointDamaged(f"{path}: damaged: {error.strerror}") from error
    known = _recorded(path.with_name(LAST) if path.name == PREVIOUS else path)
    if found not in known:
        written = f"not {known[0][:12]}..., which was written" if known else "and no hash is beside it"
        raise CheckpointDamaged(
            f"{path}: damaged: {path.stat().st_size} bytes whose sha256 is {found[:12]}..., {written}"
        )


def _is_whole(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointDamaged:
        return False
    return True


def _read(path: Path) -> Saved:
    verify(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        writer = str(checkpoint.get("pytorch-lightning_version", LIGHTNING))
        alike = writer.split(".")[:2] == LIGHTNING.split(".")[:2]  # within these its loops stay as they are
        state = checkpoint[STATE] if alike else None
    except Exception as error:  # hashed as it is, but none of ours
        raise CheckpointDamaged(f"{path}: damaged: {' '.join(str(error).split())[:200]}") from error
    if state is None:
        raise InputError(
            f"{path}: was written by pytorch-lightning {writer[:40]}, and {LIGHTNING} is installed, which counts a "
            "loop's steps in its own way; go on with that version, or start again with resume=new"
        )
    return Saved(path, state["epoch"], state["batch"], state["trained"], state["identity"])


def _replace(path: Path, checkpoint: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.tmp")
    try:
        with draft.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        torch.load(draft, map_location="cpu", weights_only=True, mmap=True)
        digest = _digest(draft)
        _record(path, [digest, *_recorded(path)[:1]])
        if path.name == LAST and path.exists():
            os.replace(path, path.with_name(PREVIOUS))
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    if path.name != LAST:
        _record(path, [digest])
    _flush(path.parent)


def _record(path: Path, digests: list[str]) -> None:
    """Write the hash of a file, and of the one before it where it is kept or still there."""
    names = [path.name, PREVIOUS if path.name == LAST else path.name]
    draft = path.with_name(f".{path.name}.sha256.tmp")
    try:
        with draft.open("w", encoding="ascii") as file:
            file.writelines(f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=False))
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, _sums(path))
    finally:
        draft.unlink(missing_ok=True)


def _recorded(path: Path) -> list[str]:
    sums = _sums(path)
    return [line[:64] for line in sums.read_text(encoding="ascii").splitlines()] if sums.is_file() else []


def _sums(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(folder: Path) -> None:
    """Make the renames last: else a power cut may forget them."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
