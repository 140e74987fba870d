"""What a sweep adds to a training: a report each epoch through the shared storage, and its end."""

import json
import logging
import math

import optuna
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from xray_pneumonia.sweeps.storage import patiently
from xray_pneumonia.tracking.run import Run

Values = dict[str, float]
log = logging.getLogger(__name__)


class EpochReport(Callback):
    """Report the first objective each epoch, and end the training when the study has seen enough.

    Args:
        trial: rebuilt from its id; None keeps count alone.
        objective: the metric that is reported.
    """

    def __init__(self, trial: optuna.Trial | None, *, objective: str) -> None:
        self._trial, self._objective = trial, objective
        self.history: list[Values] = []
        self.parameters = 0
        self.pruned = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the parameters, which may be an objective."""
        self.parameters = sum(parameter.numel() for parameter in pl_module.parameters())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report; the epoch's validation is complete by now."""
        self.history.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        value = self.history[-1].get(self._objective)
        if self._trial is None or value is None or not math.isfinite(value) or not trainer.is_global_zero:
            return
        trial, epoch = self._trial, trainer.current_epoch + 1
        patiently(lambda: trial.report(value, epoch))
        if patiently(trial.should_prune):
            log.info("trial %d: pruned after epoch %d", trial.number, epoch)
            self.pruned = trainer.should_stop = True

    def state_dict(self) -> dict[str, list[Values]]:
        """Keep the history in the checkpoint, for a trial that is requeued."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, list[Values]]) -> None:
        """Go on with it."""
        self.history = list(state_dict["history"])

    def values(self, names: list[str], *, best_epoch: int) -> list[float]:
        """Read the objectives: metrics of the best epoch, the size of the net, the median second count.

        Args:
            names: of the objectives.
            best_epoch: counted from 1.
        """
        seconds = sorted(epoch["time/epoch_seconds"] for epoch in self.history if "time/epoch_seconds" in epoch)
        known = {
            **self.history[best_epoch - 1],
            "model/parameters": float(self.parameters),
            "time/epoch_seconds": seconds[len(seconds) // 2] if seconds else math.nan,
        }
        return [known.get(name, math.nan) for name in names]


class Watch:
    """A training seen from its sweep; `train` takes one and knows nothing else of sweeps.

    Args:
        name: of the run.
        tags: of the run.
        report: reports each epoch.
        names: of the objectives.
        run_id: of the run that a requeued trial goes on with; None for a new one.
    """

    def __init__(
        self, *, name: str, tags: dict[str, str], report: EpochReport, names: list[str], run_id: str | None
    ) -> None:
        self.name, self.tags, self.run_id = name, tags, run_id
        self._report, self._names = report, names
        self.values: list[float] = []

    @property
    def callbacks(self) -> list[Callback]:
        """What Lightning calls."""
        return [self._report]

    @property
    def pruned(self) -> bool:
        """Whether the study ended the training early."""
        return self._report.pruned

    def close(self, run: Run, *, best_epoch: int) -> None:
        """Write the values to the run before it ends: one that was killed later still counts by them."""
        self.values = self._report.values(self._names, best_epoch=best_epoch)
        run.set_tags(ending(self.values, pruned=self.pruned))


def ending(values: list[float], *, pruned: bool) -> dict[str, str]:
    """Word the end of a trial as tags of its run."""
    return {"sweep.state": "PRUNED" if pruned else "COMPLETE", "sweep.values": json.dumps(values)}
