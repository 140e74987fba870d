"""How much room a checkpoint takes, for the message that there is none."""

import shutil
from pathlib import Path
from typing import Any

import torch


def shortage(folder: Path, checkpoint: dict[str, Any]) -> str:
    """Say how many bytes a checkpoint needs and how many are free; nothing where nobody knows."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return ""
    return f"it needs {_size(checkpoint)} bytes, {free} are free: "


def _size(checkpoint: dict[str, Any]) -> int:
    counter = _Counter()
    torch.save(checkpoint, counter)  # type: ignore[arg-type]
    return counter.written


class _Counter:
    """A file that only counts."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, data: Any) -> int:
        self.written += memoryview(data).nbytes
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Do nothing."""
