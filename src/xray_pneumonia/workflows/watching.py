"""What a training needs to know of whoever watches it: a sweep, or a proof that it comes out as before."""

from typing import Protocol

from pytorch_lightning.callbacks import Callback

from xray_pneumonia.tracking.run import Run


class Watch(Protocol):
    """Names and tags the run, sees each epoch, and has the last word before the run ends."""

    name: str
    tags: dict[str, str]
    run_id: str | None  # of the run that goes on; None for a new one

    @property
    def callbacks(self) -> list[Callback]:
        """What Lightning calls."""
        ...

    def close(self, run: Run, *, best_epoch: int) -> None:
        """Write to the run before it ends."""
        ...
