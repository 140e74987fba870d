"""A trial where it runs: rebuilt from `sweep.trial`, whatever launcher brought it there."""

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
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from xray_pneumonia.config import build
from xray_pneumonia.errors import InputError, Stopped
from xray_pneumonia.sweeps import replicates
from xray_pneumonia.sweeps.liveness import heartbeat
from xray_pneumonia.sweeps.reporting import EpochReport, Watch, ending
from xray_pneumonia.sweeps.samplers import build_pruner
from xray_pneumonia.sweeps.settings import SweepSettings
from xray_pneumonia.sweeps.storage import lost_connection, open_storage, patiently, resolve
from xray_pneumonia.sweeps.trial_spec import Ticket
from xray_pneumonia.sweeps.workers import settle_on_gpu
from xray_pneumonia.tracking.process import identity
from xray_pneumonia.tracking.run import Run, start_run
from xray_pneumonia.tracking.store import Store, open_store
from xray_pneumonia.tracking.stored_runs import PARENT, find

log = logging.getLogger(__name__)
Train = Callable[[DictConfig, Watch], Any]


@dataclass
class Trial:
    """One trial of a study, with one training or a replicate for each seed and fold."""

    settings: SweepSettings
    ticket: Ticket
    cfg: DictConfig
    _requeued: bool = False

    @cached_property
    def _storage(self) -> RDBStorage:
        return open_storage(resolve(self.settings.storage, Path(self.cfg.home)))

    @cached_property
    def _trial(self) -> optuna.Trial:
        """Rebuild the trial; the sampler has spoken, so any will do."""
        study = optuna.load_study(
            study_name=self.ticket.study,
            storage=self._storage,
            sampler=optuna.samplers.RandomSampler(),
            pruner=build_pruner(self.settings, max_epochs=int(self.cfg.trainer.max_epochs)),
        )
        return optuna.Trial(study, self.ticket.id)

    @property
    def _names(self) -> list[str]:
        return list(self.ticket.objectives)

    def run(self, train: Train) -> float:
        """Train and tell the study; a failure is recorded and does not leave this method.

        Returns:
            The first objective; NaN where there is none.
        """
        known = patiently(lambda: self._storage.get_trial(self.ticket.id))
        if known.state != TrialState.RUNNING:
            log.warning("trial %d was closed and replaced in the meantime; nothing to do", self.ticket.number)
            return math.nan
        if "joblib" in HydraConfig.get().launcher._target_:
            settle_on_gpu(Path(self.cfg.home))
        self._requeued = "worker" in known.user_attrs
        patiently(lambda: self._trial.set_user_attr("worker", identity()))
        with heartbeat(self._storage, self.ticket.id):
            try:
                values, pruned = self._train(train)
            except (Stopped, KeyboardInterrupt):
                self._give_back()
                raise
            except Exception as error:
                self._fail(error)
                return math.nan
        if any(math.isnan(value) for value in values) and not pruned:
            self._fail(InputError(f"{', '.join(self._names)}: never measured, so the trial has no value"))
            return math.nan
        self._tell(TrialState.PRUNED if pruned else TrialState.COMPLETE, None if pruned else values)
        log.info("trial %d: %s %s", self.ticket.number, self._names[0], f"{values[0]:.6g}{' (pruned)' * pruned}")
        return values[0]

    def _train(self, train: Train) -> tuple[list[float], bool]:
        planned = replicates.replicates(self.settings)
        if not planned:
            watch = self._watch(self._tags(self.ticket.parent), reports=len(self._names) == 1)
            train(self.cfg, watch)
            return watch.values, watch.pruned
        tags = {"verb": "trial", **self._tags(self.ticket.parent)}
        run_id = self._begun({"verb": "trial", "sweep.trial_id": str(self.ticket.id)})
        with start_run(self._store, name=self._name, tags=tags, system_metrics=False, run_id=run_id) as group:
            return self._replicate(train, planned, group)

    def _replicate(self, train: Train, planned: list[replicates.Replicate], group: Run) -> tuple[list[float], bool]:
        """Train the replicates one after the other; what a requeued job has trained already is kept."""
        done: dict[str, list[float]] = dict(self._trial.user_attrs.get("replicates", {}))
        pruned = False
        for position, replicate in enumerate(planned):
            if replicate.name not in done:
                watch = self._watch(
                    {**self._tags(group.run_id), "sweep.replicate": replicate.name},
                    reports=position == 0 and len(self._names) == 1,
                    suffix=f", {replicate.name}",
                )
                train(self._with(replicate), watch)
                done[replicate.name] = watch.values
                patiently(lambda: self._trial.set_user_attr("replicates", done))
                pruned = watch.pruned
            if pruned or (len(done) < len(planned) and self._hopeless(list(done.values()), len(planned))):
                pruned = True
                log.info("trial %d: given up after %s", self.ticket.number, replicate.name)
                break
        return self._conclude(group, list(done.values()), pruned=pruned)

    def _conclude(self, group: Run, values: list[list[float]], *, pruned: bool) -> tuple[list[float], bool]:
        """Log mean and standard deviation of every objective on the trial's own run."""
        means = []
        for name, column in zip(self._names, zip(*values, strict=True), strict=True):
            mean, sd = replicates.mean_and_sd(column)
            means.append(mean)
            known = {name: mean, **({} if math.isnan(sd) else {f"{name}_sd": sd})}
            group.log_metrics({**known, f"{name}_replicates": len(column)})
        patiently(lambda: self._trial.set_user_attr("sd", replicates.mean_and_sd([row[0] for row in values])[1]))
        group.set_tags(ending(means, pruned=pruned))
        return means, pruned

    def _hopeless(self, values: list[list[float]], total: int) -> bool:
        if len(self._names) > 1:
            return False
        complete = self._trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        others = [(t.value, t.user_attrs.get("sd", math.nan)) for t in complete if t.value is not None]
        maximize = next(iter(self.ticket.objectives.values())) == "max"
        return replicates.hopeless([row[0] for row in values], total=total, others=others, maximize=maximize)

    def _with(self, replicate: replicates.Replicate) -> DictConfig:
        cfg = self.cfg.copy()
        for key, value in replicate.values.items():
            OmegaConf.update(cfg, key, value)
        return cfg

    def _watch(self, tags: dict[str, str], *, reports: bool, suffix: str = "") -> Watch:
        report = EpochReport(self._trial if reports else None, objective=self._names[0])
        own = {key: value for key, value in tags.items() if key in {"sweep.trial_id", "sweep.replicate", PARENT}}
        run_id = self._begun({"verb": "train", **own})
        return Watch(name=self._name + suffix, tags=tags, report=report, names=self._names, run_id=run_id)

    def _begun(self, tags: dict[str, str]) -> str | None:
        """Find the run that this trial began before it was requeued."""
        if not self._requeued:
            return None
        runs = [run for run in find(self._store, tags) if run.status in {"RUNNING", "KILLED"}]
        return runs[-1].run_id if runs else None

    @cached_property
    def _store(self) -> Store:
        return open_store(build(self.cfg.tracking), home=Path(self.cfg.home))

    @property
    def _name(self) -> str:
        return f"{self.ticket.study} {self.ticket.number}"

    def _tags(self, parent: str) -> dict[str, str]:
        own = {
            PARENT: parent,
            "sweep.name": self.ticket.study,
            "sweep.trial": str(self.ticket.number),
            "sweep.trial_id": str(self.ticket.id),
        }
        return own | {f"override.{key}": str(value) for key, value in self.ticket.point.items()}

    def _fail(self, error: Exception) -> None:
        """Record why; a trial that failed before it had a run gets one, so that the sweep shows all of them."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.error("trial %d failed: %s", self.ticket.number, reason)
        with contextlib.suppress(Exception):
            self._leave_run(reason)
        if lost_connection(error):  # no fault of the trial's: another one takes its place
            self._give_back()
            return
        patiently(lambda: self._trial.set_user_attr("reason", reason[:2000]))
        self._trial.set_user_attr("input", isinstance(error, InputError))
        self._tell(TrialState.FAIL)

    def _give_back(self) -> None:
        """Fail the trial and queue its point again."""
        self._tell(TrialState.FAIL)
        replaced = {"replaces": self.ticket.number}
        patiently(lambda: self._trial.study.enqueue_trial(self.ticket.point, user_attrs=replaced))

    def _leave_run(self, reason: str) -> None:
        if find(self._store, {"sweep.trial_id": str(self.ticket.id)}):
            return
        tags = {"verb": "train", **self._tags(self.ticket.parent)}
        with (
            contextlib.suppress(_Reason),
            start_run(self._store, name=self._name, tags=tags, system_metrics=False),
        ):
            raise _Reason(reason)

    def _tell(self, state: TrialState, values: list[float] | None = None) -> None:
        patiently(lambda: self._trial.study.tell(self.ticket.number, values, state, skip_if_finished=True))


class _Reason(Exception):
    """Closes a run as failed."""


def decode(text: str) -> list[float]:
    """Read the values that `ending` wrote."""
    return [float(value) for value in json.loads(text)]
