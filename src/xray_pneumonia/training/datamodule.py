"""Adapt a data module to Lightning, which alone needs a `LightningDataModule`."""

from typing import Any

import pytorch_lightning as pl


class LightningData(pl.LightningDataModule):
    """Serves the batches of a data module, from pinned memory where the net is on a GPU."""

    def __init__(self, data: Any) -> None:
        super().__init__()
        self._data = data

    def train_dataloader(self) -> Any:
        """Serve augmented batches, in a new order each epoch."""
        return self._data.train_dataloader(pin_memory=self._on_gpu)

    def val_dataloader(self) -> Any:
        """Serve every validation image once, in order."""
        return self._data.val_dataloader(pin_memory=self._on_gpu)

    @property
    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
