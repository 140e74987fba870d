"""Write checkpoints that are complete or absent, and find the newest one that is undamaged.

A checkpoint is written under another name, flushed to the disk, read back, hashed and only then renamed. Its SHA-256
stands in `NAME.sha256`, in the form that `sha256sum -c` reads; it is written before the rename, together with the hash
of the file to be replaced, so that whatever a kill leaves under the name can be told from damage.
"""

import io
import logging
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO

from xray_pneumonia.errors import CheckpointDamaged, CheckpointNotSaved, InputError, Stopped
from xray_pneumonia.whole_files import file_sha256, sync_folder, write_whole

BEST, LAST = "best.ckpt", "last.ckpt"
PREVIOUS = "last.prev.ckpt"  # the `last.ckpt` before, for when that one is damaged
DAMAGED = "last.damaged.ckpt"
STATE = "xray"  # the key of a checkpoint under which `LastCheckpoint` keeps what Lightning does not
LIGHTNING = version("pytorch-lightning")
log = logging.getLogger(__name__)


class AtomicCheckpointIO(CheckpointIO):
    """Save atomically; Lightning itself stages in TMPDIR and can leave half a file, or none, and report it as saved."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Replace `path`; the earlier file stays until the new one has been read back.

        Raises:
            CheckpointNotSaved: the disk is full, the folder cannot be written, or the like.
        """
        path = Path(path)
        try:
            _replace(path, checkpoint)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            if isinstance(error.__context__, Stopped):  # which torch replaces by an error about half a file
                raise error.__context__ from None
            raise CheckpointNotSaved(f"{path}: cannot be saved: {_space(path.parent, checkpoint)}{error}") from error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read tensors and plain values, never code."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)  # type: ignore[no-any-return]

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint and its hash."""
        Path(path).unlink(missing_ok=True)
        _hash_file(Path(path)).unlink(missing_ok=True)


@dataclass(frozen=True)
class Saved:
    """An undamaged checkpoint of a training."""

    path: Path  # of the file
    epoch: int  # epochs completed
    trained: bool  # whether nothing is left to train
    identity: Mapping[str, str]  # of config, data and schedule, which must be the same to resume from it

    @property
    def where(self) -> str:
        """The position in words."""
        return f"after its last epoch, {self.epoch}" if self.trained else f"after epoch {self.epoch}"


def newest_valid(folder: Path) -> Saved | None:
    """Find the newest undamaged `last.ckpt`, with an error line for a damaged one; None where there is none at all.

    Raises:
        InputError: all are damaged, or the newest undamaged one cannot be resumed by this version.
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
        raise InputError("\n  ".join(["every checkpoint is damaged, so the training cannot be resumed:", *problems]))
    return None


def clean_up(folder: Path, saved: Saved) -> None:
    """Remove drafts that a kill left, set a damaged `last.ckpt` aside, and record the hashes of the files as they are.

    A kill may have come between a hash and its file, and the next save keeps the first recorded hash alone.
    """
    for draft in folder.glob(".*.tmp"):
        log.info("removing %s, an incomplete file of a stopped run", draft.name)
        draft.unlink()
    if saved.path.name != LAST and os.path.lexists(folder / LAST):
        os.replace(folder / LAST, folder / DAMAGED)
    previous = folder / PREVIOUS
    also = [file_sha256(previous)] if saved.path.name == LAST and _is_valid(previous) else []
    _record(folder / LAST, [file_sha256(saved.path), *also])
    if _is_valid(folder / BEST):
        _record(folder / BEST, [file_sha256(folder / BEST)])


def drop_previous(folder: Path) -> None:
    """Remove the previous `last.ckpt` once the training is over."""
    (folder / PREVIOUS).unlink(missing_ok=True)
    _record(folder / LAST, _recorded(folder / LAST)[:1])


def verify(path: Path) -> None:
    """Compare a file with its recorded hash.

    Raises:
        CheckpointDamaged: it is no regular file, cannot be read, or is not what was written.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise CheckpointDamaged(f"{path}: damaged: it is a link or no file at all")
        found = file_sha256(path)
    except OSError as error:
        raise CheckpointDamaged(f"{path}: damaged: {error.strerror}") from error
    known = _recorded(path.with_name(LAST) if path.name == PREVIOUS else path)
    if found not in known:
        written = f"not {known[0][:12]}..., which was written" if known else "and its hash is not recorded"
        raise CheckpointDamaged(f"{path}: damaged: {path.stat().st_size} bytes, sha256 {found[:12]}..., {written}")


def _is_valid(path: Path) -> bool:
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
        readable = writer.split(".")[:2] == LIGHTNING.split(".")[:2]  # within these its loops stay as they are
        state = checkpoint[STATE] if readable else {}
        saved = Saved(path, state["epoch"], state["trained"], state["identity"]) if readable else None
    except Exception as error:  # hashed correctly, but no checkpoint of this project
        raise CheckpointDamaged(f"{path}: damaged: {' '.join(str(error).split())[:200]}") from error
    if saved is None:
        raise InputError(
            f"{path}: was written by pytorch-lightning {writer[:40]}, and {LIGHTNING} is installed, which counts a "
            "loop's steps in its own way; resume with that version, or start again with resume=new"
        )
    if state.get("batch"):  # up to version 0.1.0 checkpoints were also written within epochs
        raise InputError(
            f"{path}: was written within epoch {saved.epoch + 1}, after {state['batch']} batches; this version resumes "
            "at the ends of epochs alone: resume with version 0.1.0, or start again with resume=new"
        )
    return saved


def _replace(path: Path, checkpoint: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.tmp")
    try:
        with draft.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        torch.load(draft, map_location="cpu", weights_only=True, mmap=True)
        written = file_sha256(draft)
        _record(path, [written, *_recorded(path)[:1]])
        if path.name == LAST and path.exists():
            os.replace(path, path.with_name(PREVIOUS))
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    if path.name != LAST:
        _record(path, [written])
    sync_folder(path.parent)


def _space(folder: Path, checkpoint: dict[str, Any]) -> str:
    """Describe how many bytes a checkpoint needs and how many are free; empty where that is not known."""
    buffer = io.BytesIO()
    try:
        free = shutil.disk_usage(folder).free
        torch.save(checkpoint, buffer)
    except (OSError, RuntimeError):
        return ""
    return f"it needs {buffer.tell()} bytes, {free} are free: "


def _hash_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _record(path: Path, hashes: list[str]) -> None:
    """Write the hash of a file, and of the one before it where that is kept or not yet replaced."""
    names = [path.name, PREVIOUS if path.name == LAST else path.name]
    write_whole(_hash_file(path), [f"{one}  {name}\n".encode() for one, name in zip(hashes, names, strict=False)])


def _recorded(path: Path) -> list[str]:
    """Read the hashes that a file may have, the newest first."""
    file = _hash_file(path)
    return [line[:64] for line in file.read_text(encoding="ascii").splitlines()] if file.is_file() else []
