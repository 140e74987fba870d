"""Runs one trial of a study: trains once or for each replicate, prunes, and tells the study its values."""

import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.storages import RDBStorage
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.trial import TrialState

from xray_pneumonia.config import build
from xray_pneumonia.errors import InputError, Stopped
from xray_pneumonia.evaluation.robust_score import SCORE, pool, score, word
from xray_pneumonia.evaluation.run_groups import mean_and_sd
from xray_pneumonia.masking import masked
from xray_pneumonia.sweeps.plan import Replicate, build_pruner, list_replicates, logged_as
from xray_pneumonia.sweeps.pruning_callback import EpochReport, GivenUp, require_same_images, result_tags
from xray_pneumonia.sweeps.replicate_pruning import is_hopeless, is_out_of_reach
from xray_pneumonia.sweeps.settings import SweepSettings, TrialSpec
from xray_pneumonia.sweeps.storage import locked, lost_connection, open_storage, resolve, retried
from xray_pneumonia.sweeps.study import queue_again
from xray_pneumonia.sweeps.trial_runs import drop_late_runs
from xray_pneumonia.tracking import stored_runs
from xray_pneumonia.tracking.process import identity
from xray_pneumonia.tracking.run import Run, start_run
from xray_pneumonia.tracking.store import Store, open_store

log = logging.getLogger(__name__)


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
        pruner = build_pruner(self.settings, max_epochs=int(self.cfg.trainer.max_epochs))
        sampler = optuna.samplers.RandomSampler()
        study = optuna.load_study(study_name=self.spec.study, storage=self._storage, sampler=sampler, pruner=pruner)
        return optuna.Trial(study, self.spec.id)

    @cached_property
    def _store(self) -> Store:
        return open_store(build(self.cfg.tracking), home=Path(self.cfg.home))

    def _require_open(self) -> None:
        if retried(lambda: self._storage.get_trial(self.spec.id)).state.is_finished():
            raise GivenUp(self._late)

    @property
    def _late(self) -> str:
        return (
            f"trial {self.spec.number}: was silent for over {self.settings.stale_after} s (sweep.stale_after), given "
            "up and queued again; its late result is dropped"
        )

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
            except GivenUp as error:
                log.warning("%s", error)
                return math.nan
            except Exception as error:
                self._fail(error)
                return math.nan
            except (Stopped, KeyboardInterrupt):  # Slurm's requeue is a SystemExit: the trial goes on in its next job
                self._give_back()
                raise
        if not self._tell(TrialState.PRUNED if pruned else TrialState.COMPLETE, None if pruned else values):
            log.warning("%s", self._late)
            try:
                drop_late_runs(self._store, self.spec.id, reason=self._late)
            except InputError as error:
                log.warning("%s; runs of trial %d may still be listed as finished", error, self.spec.number)
            return math.nan
        log.info("trial %d: %s %s", self.spec.number, self._names[0], f"{values[0]:.6g}{' (pruned)' * pruned}")
        return values[0]

    def _train(self) -> tuple[list[float], bool]:
        """Train; returns the objectives and whether the trial was pruned."""
        planned = list_replicates(self.settings)
        if not planned:
            report = self._report(self.cfg, self._tags(self.spec.parent), first=True)
            self.train(self.cfg, report)
            self._tell_parts(report.parts, "one training")
            return report.values, report.pruned
        tags = {"verb": "trial", **self._tags(self.spec.parent)}
        run_id = self._earlier_run({"verb": "trial", "sweep.trial_id": str(self.spec.id)})
        with start_run(self._store, name=self._name, tags=tags, system_metrics=False, run_id=run_id) as group:
            return self._replicate(planned, group)

    def _replicate(self, planned: list[Replicate], group: Run) -> tuple[list[float], bool]:
        """Train the replicates one after the other, except those that a requeued job has trained already."""
        done: dict[str, list[float]] = dict(self._trial.user_attrs.get("replicates", {}))
        parts: dict[str, dict[str, float]] = dict(self._trial.user_attrs.get("parts", {}))
        pruned = False
        for position, replicate in enumerate(planned):
            if replicate.name not in done:
                tags = {**self._tags(group.run_id), "sweep.replicate": replicate.name}
                cfg = self.cfg.copy()
                for key, value in replicate.values.items():
                    OmegaConf.update(cfg, key, value)
                report = self._report(cfg, tags, first=position == 0, suffix=f", {replicate.name}")
                self.train(cfg, report)
                done[replicate.name], parts[replicate.name] = report.values, report.parts
                self._set("parts", parts)  # first: a replicate that is done has its parts
                self._set("replicates", done)
                if self._names == [SCORE]:  # from which the sampler learns where the rest is not trained
                    so_far = score(pool(list(parts.values())), self.settings.scales)
                    retried(partial(self._trial.report, so_far, len(done)))
                pruned = report.pruned
            if pruned or (len(done) < len(planned) and self._is_hopeless(done, parts)):
                pruned = True
                log.info("trial %d: given up after %s", self.spec.number, replicate.name)
                break
        columns = dict(zip(self._names, map(list, zip(*done.values(), strict=True)), strict=True))
        if SCORE in columns:
            columns[SCORE] = self._score_seeds(planned, parts, group)
        group.log_params({"replicates": len(done)})
        return self._summarize(group, columns, pruned=pruned)

    def _score_seeds(self, planned: list[Replicate], parts: dict[str, dict[str, float]], group: Run) -> list[float]:
        """Score each seed by its parts together; log them, and say what they rest on."""
        seeds: dict[Any, list[dict[str, float]]] = {}
        for replicate in planned:
            if replicate.name in parts:
                seeds.setdefault(replicate.values.get("seed"), []).append(parts[replicate.name])
        values = pool(list(parts.values()))
        group.log_metrics(values)
        group.set_tags({"robust.rests_on": self._tell_parts(values, ", ".join(parts))})
        return [score(pool(trainings), self.settings.scales) for trainings in seeds.values()]

    def _tell_parts(self, values: dict[str, float], trainings: str) -> str:
        """Log the parts of the score; returns what it rests on."""
        data = self.cfg.data
        images = "all" if data.max_images is None else f"a sample of {data.max_images}"
        basis = f"{trainings}; {self.cfg.trainer.max_epochs} epochs of {data.image_size} pixels, {images} images"
        if values:
            log.info("trial %d: %s", self.spec.number, "\n".join([*word(values, self.settings.scales), f"  ({basis})"]))
        return basis

    def _summarize(self, group: Run, columns: dict[str, list[float]], *, pruned: bool) -> tuple[list[float], bool]:
        """Log mean and standard deviation of every objective on the trial's own run."""
        summaries = [mean_and_sd(column) for column in columns.values()]
        for name, (mean, sd) in zip(self._names, summaries, strict=True):
            logged = logged_as(name)
            group.log_metrics({logged: mean, **({} if math.isnan(sd) else {f"{logged}_sd": sd})})
        self._set("sd", summaries[0][1])
        means = [mean for mean, _ in summaries]
        group.set_tags(result_tags(means, pruned=pruned))
        return means, pruned

    def _is_hopeless(self, done: dict[str, list[float]], parts: dict[str, dict[str, float]]) -> bool:
        if len(self._names) > 1:
            return False
        complete = self._trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if SCORE in self._names:
            known = [t.user_attrs["parts"] for t in complete if "parts" in t.user_attrs]
            enough = len(known) >= self.settings.prune_after_trials
            return enough and is_out_of_reach(parts, known, scales=self.settings.scales)
        done_by_others = [t.user_attrs["replicates"] for t in complete if "replicates" in t.user_attrs]
        mine, *others = ({name: row[0] for name, row in values.items()} for values in (done, *done_by_others))
        return is_hopeless(mine, others=others, maximize=self.spec.objectives[self._names[0]] == "max")

    def _report(self, cfg: DictConfig, tags: dict[str, str], *, first: bool, suffix: str = "") -> EpochReport:
        same = {"sweep.trial_id", "sweep.replicate", stored_runs.PARENT}
        own = {key: value for key, value in tags.items() if key in same}
        return EpochReport(
            self._trial if first and len(self._names) == 1 else None,
            objectives=self._names,
            name=self._name + suffix,
            tags=tags,
            run_id=self._earlier_run({"verb": "train", **own}),
            require_open=self._require_open,
            require_records=partial(require_same_images, self._trial, cfg),
            scales=self.settings.scales,
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
        try:
            self._require_open()
        except GivenUp as late:
            log.warning("%s", late)
            return
        if lost_connection(error):  # no fault of the trial's: another one takes its place
            return self._give_back()
        self._set("reason", masked(reason)[:2000])
        self._set("input", isinstance(error, InputError))
        self._tell(TrialState.FAIL)

    def _give_back(self) -> None:
        """Fail the trial and queue its point again, unless another process has done so."""

        def fail() -> None:
            with locked(self._storage):
                study = self._trial.study
                study.tell(self.spec.number, None, TrialState.FAIL, skip_if_finished=True)
                queue_again(study, self.spec.number, self.spec.point)

        retried(fail)

    def _set(self, name: str, value: object) -> None:
        retried(lambda: self._trial.set_user_attr(name, value))

    def _tell(self, state: TrialState, values: list[float] | None = None) -> bool:
        """End the trial in the study; returns whether it ended so, and not earlier in another way."""
        told = retried(lambda: self._trial.study.tell(self.spec.number, values, state, skip_if_finished=True))
        return told.state == state
