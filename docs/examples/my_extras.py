"""A transform, callbacks (one logs a metric) and a logger of one's own, used by conf/experiment/extras.yaml."""

import json
from pathlib import Path

from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger


def speckle(image, generator, *, strength: float = 0.1):
    """A transform maps an image (H, W), uint8, to another; what it draws from the generator, a rerun draws too."""
    noise = 1 + strength * generator.standard_normal(image.shape)
    return (image * noise).clip(0, 255).astype("uint8")


class Announce(Callback):
    """Lightning calls its hooks."""

    def __init__(self, every: int = 1):
        self.every = every

    def on_train_epoch_end(self, trainer, module):
        if (trainer.current_epoch + 1) % self.every == 0:
            print(f"epoch {trainer.current_epoch + 1} is over")


class Youden(Callback):
    """A metric of each epoch, beside those of the report: from the logits and labels of all validation images."""

    def on_validation_epoch_end(self, trainer, module):
        logits, labels = module.outputs["checking"].compute()
        called, ill = logits > 0, labels > 0
        module.log("val/youden", (called[ill].float().mean() - called[~ill].float().mean()).item())


class JsonLogger(Logger):
    """`save_dir` is given: a folder among the artifacts of the run."""

    name, version = "json", 0

    def __init__(self, save_dir: str):
        super().__init__()
        self._file = Path(save_dir) / "metrics.jsonl"

    def log_metrics(self, metrics, step=None):
        with self._file.open("a") as file:
            print(json.dumps({"step": step, **metrics}), file=file)

    def log_hyperparams(self, *arguments, **parameters):
        pass
