"""What is looked at after each epoch, beside the metrics."""

from collections.abc import Callable

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class Recheck(Callback):
    """Ask at the end of each epoch whether the data are still those that the run says it was trained on.

    Args:
        require: raises when they are not.
    """

    def __init__(self, require: Callable[[], None]) -> None:
        self._require = require

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask."""
        if trainer.is_global_zero:
            self._require()
