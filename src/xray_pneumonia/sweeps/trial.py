"""Runs one trial of a study where its launcher brought it: trains once or for each replicate, reports, tells values."""

import contextlib
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from optuna.storages import RDBStorage
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.trial import TrialState
from pytorch_lightning.callbacks import Callback

from xray_pneumonia.config import build
from xray_pneumonia.errors import InputError, Stopped
from xray_pneumonia.masking import masked
from xray_pneumonia.sweeps.plan import Replicate, build_pruner, is_hopeless, list_replicates, logged_as, mean_and_sd
from xray_pneumonia.sweeps.settings import SweepSettings, TrialSpec
from xray_pneumonia.sweeps.storage import lost_connection, open_storage, resolve, retried
from xray_pneumonia.tracking import stored_runs
from xray_pneumonia.tracking.process import identity
from xray_pneumonia.tracking.run import Run, start_run
from xray_pneumonia.tracking.store import Store, open_store

log = logging.getLogger(__name__)


class EpochReport(Callback):
    """Name the run of a training, report its epochs to the study, and write its values before it ends.

    Args:
        trial: to report to, and to prune by; None only collects the values.
        objectives: names of metrics; the first one is reported.
        name, tags: of the run.
        run_id: of the run that a requeued trial continues; None for a new one.
    """

    def __init__(
        self, trial: optuna.Trial | None, *, objectives: list[str], name: str, tags: dict[str, str], run_id: str | None
    ) -> None:
        self.callbacks: list[Callback] = [self]  # of the training
        self._trial, self._objectives = trial, objectives
        self.name, self.tags, self.run_id = name, tags, run_id
        self.history: list[dict[str, float]] = []
        self.parameters = 0
        self.pruned = False
        self.values: list[float] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the parameters, which may be an objective."""
        self.parameters = sum(parameter.numel() for parameter in pl_module.parameters())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the epoch, whose validation is complete by now, and stop where the pruner says so."""
        self.history.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        value = self.history[-1].get(self._objectives[0])
        if self._trial is None or value is None or not math.isfinite(value) or not trainer.is_global_zero:
            return
        trial, epoch = self._trial, trainer.current_epoch + 1
        retried(lambda: trial.report(value, epoch))
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
        seconds = sorted(epoch["time/epoch_seconds"] for epoch in self.history if "time/epoch_seconds" in epoch)
        median = (seconds or [math.nan])[len(seconds) // 2]
        known = self.history[best_epoch - 1] | {"model/parameters": self.parameters, "time/epoch_seconds": median}
        self.values = [known.get(name, math.nan) for name in self._objectives]
        run.set_tags(_result_tags(self.values, pruned=self.pruned))
        if self.pruned:
            run.set_tags(_pruned_tags(run, len(self.history)))


def _pruned_tags(run: Run, epochs: int) -> dict[str, str]:
    """Make a pruned run look like no finished training."""
    note = {"mlflow.note.content": f"Pruned after {epochs} epochs. {run.tags['mlflow.note.content']}"}
    return {**note, "mlflow.runName": f"pruned: {run.name}", stored_runs.STATE: "pruned"}


def _result_tags(values: list[float], *, pruned: bool) -> dict[str, str]:
    return {"sweep.state": "PRUNED" if pruned else "COMPLETE", "sweep.values": json.dumps(values)}


@dataclass
class Trial:
    """One trial of a study, with one training or a replicate for each seed and fold.

    Args:
        settings: the config group `sweep`, with `trial` filled in.
        cfg, train: the config of the training, and the function that trains on it.
    """

    settings: SweepSettings
    cfg: DictConfig
    train: Callable[[DictConfig, EpochReport], object]

    def __post_init__(self) -> None:
        """Read what the sweeper wrote for this trial."""
        self.spec = TrialSpec(**self.settings.trial or {})
        self._requeued = False
        self._names = list(self.spec.objectives)

    @cached_property
    def _storage(self) -> RDBStorage:
        url = resolve(self.settings.storage, Path(self.cfg.home))
        return open_storage(url, stale_after=self.settings.stale_after)

    @cached_property
    def _trial(self) -> optuna.Trial:
        """Rebuild the trial; its parameters are suggested already, so any sampler will do."""
        study = optuna.load_study(
            study_name=self.spec.study,
            storage=self._storage,
            sampler=optuna.samplers.RandomSampler(),
            pruner=build_pruner(self.settings, max_epochs=int(self.cfg.trainer.max_epochs)),
        )
        return optuna.Trial(study, self.spec.id)

    @cached_property
    def _store(self) -> Store:
        return open_store(build(self.cfg.tracking), home=Path(self.cfg.home))

    def run(self) -> float:
        """Train and tell the study; a failure is recorded and not raised.

        Returns:
            The first objective; NaN where there is none.
        """
        known = retried(lambda: self._storage.get_trial(self.spec.id))
        if known.state != TrialState.RUNNING:
            log.warning("trial %d was closed and replaced in the meantime; nothing to do", self.spec.number)
            return math.nan
        self._requeued = "worker" in known.user_attrs
        self._set("worker", identity())
        with get_heartbeat_thread(self.spec.id, self._storage):
            try:
                values, pruned = self._train()
                if any(math.isnan(value) for value in values) and not pruned:
                    raise InputError(f"{', '.join(self._names)}: never measured, so the trial has no value")
            except Exception as error:
                self._fail(error)
                return math.nan
            except (Stopped, KeyboardInterrupt):  # Slurm's requeue is a SystemExit: the trial goes on in its next job
                self._give_back()
                raise
        self._tell(TrialState.PRUNED if pruned else TrialState.COMPLETE, None if pruned else values)
        log.info("trial %d: %s %s", self.spec.number, self._names[0], f"{values[0]:.6g}{' (pruned)' * pruned}")
        return values[0]

    def _train(self) -> tuple[list[float], bool]:
        """Train; returns the objectives and whether the trial was pruned."""
        planned = list_replicates(self.settings)
        if not planned:
            report = self._report(self._tags(self.spec.parent), first=True)
            self.train(self.cfg, report)
            return report.values, report.pruned
        tags = {"verb": "trial", **self._tags(self.spec.parent)}
        run_id = self._earlier_run({"verb": "trial", "sweep.trial_id": str(self.spec.id)})
        with start_run(self._store, name=self._name, tags=tags, system_metrics=False, run_id=run_id) as group:
            return self._replicate(planned, group)

    def _replicate(self, planned: list[Replicate], group: Run) -> tuple[list[float], bool]:
        """Train the replicates one after the other, except those that a requeued job has trained already."""
        done: dict[str, list[float]] = dict(self._trial.user_attrs.get("replicates", {}))
        pruned = False
        for position, replicate in enumerate(planned):
            if replicate.name not in done:
                tags = {**self._tags(group.run_id), "sweep.replicate": replicate.name}
                report = self._report(tags, first=position == 0, suffix=f", {replicate.name}")
                cfg = self.cfg.copy()
                for key, value in replicate.values.items():
                    OmegaConf.update(cfg, key, value)
                self.train(cfg, report)
                done[replicate.name] = report.values
                self._set("replicates", done)
                pruned = report.pruned
            if pruned or (len(done) < len(planned) and self._is_hopeless(done)):
                pruned = True
                log.info("trial %d: given up after %s", self.spec.number, replicate.name)
                break
        return self._summarize(group, list(done.values()), pruned=pruned)

    def _summarize(self, group: Run, values: list[list[float]], *, pruned: bool) -> tuple[list[float], bool]:
        """Log mean and standard deviation of every objective on the trial's own run."""
        summaries = [mean_and_sd(column) for column in zip(*values, strict=True)]
        for name, (mean, sd) in zip(self._names, summaries, strict=True):
            logged = logged_as(name)
            group.log_metrics({logged: mean, **({} if math.isnan(sd) else {f"{logged}_sd": sd})})
        group.log_params({"replicates": len(values)})
        self._set("sd", summaries[0][1])
        means = [mean for mean, _ in summaries]
        group.set_tags(_result_tags(means, pruned=pruned))
        return means, pruned

    def _is_hopeless(self, done: dict[str, list[float]]) -> bool:
        if len(self._names) > 1:
            return False
        complete = self._trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        known = [t.user_attrs["replicates"] for t in complete if "replicates" in t.user_attrs]
        mine, *others = ({name: row[0] for name, row in values.items()} for values in (done, *known))
        return is_hopeless(mine, others=others, maximize=self.spec.objectives[self._names[0]] == "max")

    def _report(self, tags: dict[str, str], *, first: bool, suffix: str = "") -> EpochReport:
        same = {"sweep.trial_id", "sweep.replicate", stored_runs.PARENT}
        own = {key: value for key, value in tags.items() if key in same}
        return EpochReport(
            self._trial if first and len(self._names) == 1 else None,
            objectives=self._names,
            name=self._name + suffix,
            tags=tags,
            run_id=self._earlier_run({"verb": "train", **own}),
        )

    def _earlier_run(self, tags: dict[str, str]) -> str | None:
        """Find the run that this trial began before it was requeued."""
        if not self._requeued:
            return None
        runs = [run for run in stored_runs.find(self._store, tags) if run.status in {"RUNNING", "KILLED"}]
        return runs[-1].run_id if runs else None

    @property
    def _name(self) -> str:
        return f"{self.spec.study} {self.spec.number}"

    def _tags(self, parent: str) -> dict[str, str]:
        own = {
            stored_runs.PARENT: parent,
            "sweep.name": self.spec.study,
            "sweep.trial": str(self.spec.number),
            "sweep.trial_id": str(self.spec.id),
        }
        return own | {f"override.{key}": str(value) for key, value in self.spec.point.items()}

    def _fail(self, error: Exception) -> None:
        """Record why; a trial that failed before it had a run gets one, so that the sweep shows all of them."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.error("trial %d failed: %s", self.spec.number, reason)
        with contextlib.suppress(Exception):  # the store may be what failed
            if not stored_runs.find(self._store, {"sweep.trial_id": str(self.spec.id)}):
                tags = {"verb": "train", **self._tags(self.spec.parent)}
                with start_run(self._store, name=self._name, tags=tags, system_metrics=False):
                    raise error
        if lost_connection(error):  # no fault of the trial's: another one takes its place
            return self._give_back()
        self._set("reason", masked(reason)[:2000])
        self._set("input", isinstance(error, InputError))
        self._tell(TrialState.FAIL)

    def _give_back(self) -> None:
        """Fail the trial and queue its point again."""
        self._tell(TrialState.FAIL)
        retried(lambda: self._trial.study.enqueue_trial(self.spec.point, user_attrs={"replaces": self.spec.number}))

    def _set(self, name: str, value: object) -> None:
        retried(lambda: self._trial.set_user_attr(name, value))

    def _tell(self, state: TrialState, values: list[float] | None = None) -> None:
        retried(lambda: self._trial.study.tell(self.spec.number, values, state, skip_if_finished=True))
