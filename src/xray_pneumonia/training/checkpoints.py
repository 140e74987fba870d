"""Checkpoints that are whole or not there: written aside, flushed, read back, then renamed."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's own way stages in TMPDIR and can leave half a file, or none, and call it saved."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Replace `path` at once; the earlier file stays whole until the new one has been read back."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.tmp")
        try:
            with draft.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            torch.load(draft, map_location="cpu", weights_only=True, mmap=True)
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # else a power cut may forget the rename
        finally:
            os.close(folder)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read tensors and plain values, never code."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)  # type: ignore[no-any-return]

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint that a better one replaced."""
        Path(path).unlink(missing_ok=True)
