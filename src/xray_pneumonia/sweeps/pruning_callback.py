"""Reports a trial's epochs to its study, stops it where the pruner says so, and writes its values to its run."""

import hashlib
import json
import logging
import math
from collections.abc import Callable
from typing import Any

import optuna
import pytorch_lightning as pl
from omegaconf import DictConfig
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from pytorch_lightning.callbacks import Callback

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.robust_score import MEASURES, PREFIX, SCORE, Scales, score
from xray_pneumonia.sweeps.storage import retried
from xray_pneumonia.tracking import stored_runs
from xray_pneumonia.tracking.lightning_logger import RunLogger
from xray_pneumonia.tracking.run import Run

PLACES = {"root", "cache_dir"}  # where the data lie, which may differ between machines
log = logging.getLogger(__name__)


class GivenUp(Exception):
    """This process was silent for so long, paused perhaps, that another one failed its trial and queued it again."""


class EpochReport(Callback):
    """Name the run of a training, report its epochs to the study, and write its values before it ends.

    Args:
        trial: to report to, and to prune by; None only collects the values.
        objectives: names of metrics; the first one is reported.
        name, tags: of the run.
        run_id: of the run that a requeued trial continues; None for a new one.
        require_open: raises where another process gave the trial up.
        require_records: raises where the records of this fingerprint are not those of the other trials.
        scales: of the parts of `robust/score`.
    """

    def __init__(
        self,
        trial: optuna.Trial | None,
        *,
        objectives: list[str],
        name: str,
        tags: dict[str, str],
        run_id: str | None,
        require_open: Callable[[], None],
        require_records: Callable[[str], None],
        scales: Scales,
    ) -> None:
        self.callbacks: list[Callback] = [self]  # of the training
        self._trial, self._objectives = trial, objectives
        self.name, self.tags, self.run_id = name, tags, run_id
        self._require_open, self._require_records = require_open, require_records
        self.history: list[dict[str, float]] = []
        self.parameters = 0
        self.pruned = False
        self.values: list[float] = []
        self.scored, self._scales = SCORE in objectives, scales
        self.parts: dict[str, float] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that all trials learn from the same images; count the parameters, which may be an objective."""
        if trainer.is_global_zero:
            [run] = [logger.experiment for logger in trainer.loggers if isinstance(logger, RunLogger)]
            self._require_records(run.tags["records_fingerprint"])
        self.parameters = sum(parameter.numel() for parameter in pl_module.parameters())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the epoch, whose validation is complete by now, and stop where the pruner says so."""
        self.history.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        value = self.history[-1].get(self._objectives[0])
        if self._trial is None or value is None or not math.isfinite(value) or not trainer.is_global_zero:
            return
        trial, epoch = self._trial, trainer.current_epoch + 1
        try:
            retried(lambda: trial.report(value, epoch))
        except UpdateFinishedTrialError:
            self._require_open()
            raise
        if retried(trial.should_prune):
            log.info("trial %d: pruned after epoch %d", trial.number, epoch)
            self.pruned = trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Keep the history in the checkpoint, for a trial that is requeued."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the history."""
        self.history = list(state_dict["history"])

    def close(self, run: Run, *, best_epoch: int) -> None:
        """Write the values to the run before it ends, so that they count if this process is killed afterwards.

        Args:
            run: of the training.
            best_epoch: whose metrics count, from 1; of the seconds it is the median.
        """
        self._require_open()
        seconds = sorted(epoch["time/epoch_seconds"] for epoch in self.history if "time/epoch_seconds" in epoch)
        median = (seconds or [math.nan])[len(seconds) // 2]
        known = self.history[best_epoch - 1] | {"model/parameters": self.parameters, "time/epoch_seconds": median}
        if self.scored:
            known[SCORE] = self._read_score(run)
        self.values = [known.get(name, math.nan) for name in self._objectives]
        run.set_tags(result_tags(self.values, pruned=self.pruned))
        if self.pruned:
            run.set_tags(_pruned_tags(run, len(self.history)))

    def _read_score(self, run: Run) -> float:
        """Read the parts that the training logged, and score them."""
        logged = run.metric_history([f"{PREFIX}{part}/{name}" for part in self._scales for name in MEASURES])
        self.parts = {name: pairs[-1][1] for name, pairs in logged.items() if pairs}
        value = score(self.parts, self._scales)
        run.log_metrics({SCORE: value})
        return value


def _pruned_tags(run: Run, epochs: int) -> dict[str, str]:
    """Make a pruned run look like no finished training."""
    note = {"mlflow.note.content": f"Pruned after {epochs} epochs. {run.tags['mlflow.note.content']}"}
    return {**note, "mlflow.runName": f"pruned: {run.name}", stored_runs.STATE: "pruned"}


def result_tags(values: list[float], *, pruned: bool) -> dict[str, str]:
    """Write a trial's result as tags of its run, from which it is recovered if this process dies."""
    return {"sweep.state": "PRUNED" if pruned else "COMPLETE", "sweep.values": json.dumps(values)}


def require_same_images(trial: optuna.Trial, cfg: DictConfig, fingerprint: str) -> None:
    """Refuse other images than an earlier trial had with the same keys of `data`, at whatever path.

    Args:
        trial: that trains; the fingerprint is noted there. Earlier ones, unless they failed, are the example.
        cfg: of the training.
        fingerprint: of its records.

    Raises:
        InputError: an earlier trial had other images.
    """
    what = {key: str(value) for key, value in {**cfg.data, "seed": cfg.get("seed")}.items() if key not in PLACES}
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
    retried(lambda: trial.set_user_attr("records", {**trial.user_attrs.get("records", {}), key: fingerprint}))
    for other in retried(lambda: trial.study.get_trials(deepcopy=False)):
        known = other.user_attrs.get("records", {}).get(key, fingerprint)
        if other.number < trial.number and other.state != TrialState.FAIL and known != fingerprint:
            raise InputError(
                f"data.root={cfg.data.get('root')}: holds other images than trial {other.number} of "
                f"{trial.study.study_name} had (fingerprint {fingerprint[:12]}, expected {known[:12]}); bring the same "
                "ones to this machine, or choose another sweep.name"
            )
