"""Passes what Lightning logs at the end of an epoch to a run."""

from argparse import Namespace
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from xray_pneumonia.tracking.run import Run


class RunLogger(Logger):
    """Lightning's logger of a run; the step in MLflow is the number of epochs completed."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run
        self._latest: dict[str, float] = {}  # what callbacks log within an epoch

    @property
    def experiment(self) -> Run:
        """The run, under the name that Lightning's loggers have for what they write to."""
        return self._run

    @property
    def name(self) -> str:
        """The experiment."""
        return self._run.store.experiment_name

    @property
    def version(self) -> str:
        """The run."""
        return self._run.run_id

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log the metrics of an epoch in one batch, with the last values of what is logged more often."""
        if "epoch" not in metrics:
            self._latest |= metrics
            return
        known = {**self._latest, **metrics}
        self._latest = {}
        epoch = known.pop("epoch")
        self._run.log_metrics(known, step=int(epoch) + 1)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the whole config is logged before the training."""
