"""A compiled net, for the time of a training: fewer and larger kernels, the same names of the weights."""

import logging
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

log = logging.getLogger(__name__)


class Compiling(Callback):
    """Compile the net in place when a training begins, in each process, and take it back when it ends.

    Args:
        backend: torch's name of a compiler, or a function that is one.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self._backend = backend

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compile, which happens at the first step of each image size."""
        log.info("speed: the net is compiled; the first steps take longer")
        pl_module.net.compile(backend=self._backend)  # type: ignore[operator, union-attr]

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the net back as it was: what follows judges and keeps the plain one."""
        pl_module.net._compiled_call_impl = None  # type: ignore[union-attr]

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give it back, too."""
        self.on_fit_end(trainer, pl_module)
