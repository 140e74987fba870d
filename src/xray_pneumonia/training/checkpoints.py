"""Checkpoints that are whole or not there: written aside, flushed, read back, hashed (see `hashes`), then renamed."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO

from xray_pneumonia.errors import CheckpointDamaged, CheckpointNotSaved, InputError
from xray_pneumonia.training.hashes import LAST, PREVIOUS, beside, digest, is_whole, record, recorded, verify
from xray_pneumonia.training.room import shortage

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
        beside(Path(path)).unlink(missing_ok=True)


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
    also = [digest(previous)] if saved.path.name == LAST and previous.is_file() and is_whole(previous) else []
    record(folder / LAST, [digest(saved.path), *also])
    if (folder / BEST).is_file() and is_whole(folder / BEST):
        record(folder / BEST, [digest(folder / BEST)])


def drop_previous(folder: Path) -> None:
    """Remove the way back once the training is over."""
    (folder / PREVIOUS).unlink(missing_ok=True)
    record(folder / LAST, [recorded(folder / LAST)[0]])


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
        written = digest(draft)
        record(path, [written, *recorded(path)[:1]])
        if path.name == LAST and path.exists():
            os.replace(path, path.with_name(PREVIOUS))
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    if path.name != LAST:
        record(path, [written])
    _flush(path.parent)


def _flush(folder: Path) -> None:
    """Make the renames last: else a power cut may forget them."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
