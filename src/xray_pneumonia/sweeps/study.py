"""Creates or continues an Optuna study and accounts for every trial: claimed, stale, failed, queued again."""

import functools
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.trial import FrozenTrial, TrialState

from xray_pneumonia.config import leaves
from xray_pneumonia.errors import InputError
from xray_pneumonia.masking import masked
from xray_pneumonia.sweeps.plan import Plan, build_pruner, build_sampler
from xray_pneumonia.sweeps.space import Point
from xray_pneumonia.sweeps.stale_trials import is_stale, silent_trials
from xray_pneumonia.sweeps.storage import locked, retried
from xray_pneumonia.tracking.process import identity
from xray_pneumonia.tracking.store_errors import StoreUnavailable

POLL = 1.0  # seconds between two looks at trials of other processes
PLACES = {"fixed.data.root", "fixed.data.cache_dir"}  # of the data, which may differ between machines
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
log = logging.getLogger(__name__)

# Called for a trial whose process is gone: closes its runs, and returns state and values where its training was done.
RecoverResult = Callable[[FrozenTrial], tuple[TrialState, list[float]] | None]


@dataclass(frozen=True)
class Claim:
    """A trial that this process is to run."""

    number: int
    trial_id: int
    point: Point


class SweepStudy:
    """One study, and what this command may do with it.

    Heartbeats and the grace period are Optuna's, in `storage`. Its `fail_stale_trials` and retry callback are not
    used: they would fail a trial whose run is finished, give the attributes of a dead process to its replacement, and
    wait out the grace period for a process of this machine that is known to be gone.

    Args:
        plan: the sweep.
        storage: its database.
        session: identifies this command with all its workers: failures of another one are tried again.
        recover_result: see `RecoverResult`.
    """

    def __init__(self, plan: Plan, storage: RDBStorage, *, session: str, recover_result: RecoverResult) -> None:
        self._plan, self.storage, self.session, self._recover_result = plan, storage, session, recover_result
        self._unclaimed = set[int]()  # trials that this process asked for and lost by an error before it had them
        with locked(storage):
            self.study = optuna.create_study(
                study_name=plan.name,
                storage=storage,
                directions=["maximize" if mode == "max" else "minimize" for mode in plan.objectives.values()],
                pruner=build_pruner(plan.settings, max_epochs=plan.max_epochs),
                load_if_exists=True,
            )
            self._require_same()
            self._queue_points()

    def _require_same(self) -> None:
        """Refuse to mix values that mean different things; each trial compares the data, by fingerprint."""
        asked = json.loads(json.dumps(self._plan.describe()))
        known = self.study.user_attrs.get("sweep")
        if known is None:
            self.study.set_user_attr("sweep", asked)
        elif changed := _changes(dict(leaves(known)), dict(leaves(asked))):
            raise InputError(
                f"sweep.name={self._plan.name}: this study is another one; choose another name, or ask for "
                "the same:\n  " + "\n  ".join(changed)
            )
        if self.study.user_attrs.get("n_trials") != self._plan.n_trials:
            self.study.set_user_attr("n_trials", self._plan.n_trials)

    def _queue_points(self) -> None:
        """Queue the points that were never tried, and again those whose trials failed."""
        trials = self.trials()
        tried = [_point(trial) for trial in trials]
        for point in self._plan.points:
            if point not in tried:
                self.study.enqueue_trial(point, user_attrs={"queued": True})
        for trial in trials:
            if trial.state == TrialState.FAIL:
                queue_again(self.study, trial.number, _point(trial))

    def trials(self) -> list[FrozenTrial]:
        """Read all trials; not to be changed."""
        return retried(lambda: self.study.get_trials(deepcopy=False))

    def claim(self, count: int) -> list[Claim]:
        """Take up to `count` trials; none when the budget is spent or being spent, or too many failed."""
        while True:
            try:
                return retried(lambda: self._claim(count))
            except UpdateFinishedTrialError:  # paused while it asked, and given up by others
                log.warning("this process was taken for dead while it took a trial; it takes another one")

    def _claim(self, count: int) -> list[Claim]:
        """Ask under the lock; let the sampler choose without it, which takes as long and needs no order."""
        with locked(self.storage):
            self._fail_stale_trials()
            known = self.trials()
            if self.too_many_failures(known):
                return []
            asked = [self._ask() for _ in range(min(count, self.room(known)))]
        claims = [Claim(trial.number, trial._trial_id, self._suggest(trial, sampler)) for trial, sampler in asked]
        self._unclaimed -= {claim.trial_id for claim in claims}
        return claims

    def _ask(self) -> tuple[optuna.Trial, BaseSampler]:
        sampler = build_sampler(self._plan.settings, kind=self._plan.kind, number=len(self.trials()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Optuna expects its own loop where there are heartbeats
            trial = self.study.ask()
        self._unclaimed.add(trial._trial_id)
        trial.set_user_attr("owner", {**identity(), "session": self.session})
        if self._plan.kind == "qmc":  # it counts its points in the study
            self._suggest(trial, sampler)
        return trial, sampler

    def _suggest(self, trial: optuna.Trial, sampler: BaseSampler) -> Point:
        self.study.sampler = sampler
        return self._plan.space.suggest(trial)

    def room(self, known: list[FrozenTrial] | None = None) -> int:
        """Count the trials that still have to be started, among those `known`, which are read by default."""
        trials = self.trials() if known is None else known
        spent = sum(t.state in DONE or t.state == TrialState.RUNNING or self._failed_here(t) for t in trials)
        room = self._plan.n_trials - spent
        if self._plan.kind == "grid":  # its points wait in the queue, and there are no others
            room = min(room, sum(t.state == TrialState.WAITING for t in trials))
        return room

    def running(self) -> int:
        """Count the trials that run, in any process."""
        return sum(trial.state == TrialState.RUNNING for trial in self.trials())

    def failures(self, known: list[FrozenTrial] | None = None) -> list[FrozenTrial]:
        """List the trials of this command that failed by themselves, among those `known`, which are read by default."""
        return [trial for trial in (self.trials() if known is None else known) if self._failed_here(trial)]

    def too_many_failures(self, known: list[FrozenTrial] | None = None) -> bool:
        """Tell whether more trials of this command failed than `sweep.max_failures`."""
        most = self._plan.settings.max_failures
        return most is not None and len(self.failures(known)) > most

    def _failed_here(self, trial: FrozenTrial) -> bool:
        session = trial.user_attrs.get("owner", {}).get("session")
        return trial.state == TrialState.FAIL and session == self.session and "reason" in trial.user_attrs

    @contextmanager
    def heartbeat(self, claims: list[Claim]) -> Iterator[None]:
        """Record heartbeats for trials while they are with a launcher, where they may wait in a queue."""
        with ExitStack() as stack:
            for claim in claims:
                thread = get_heartbeat_thread(claim.trial_id, self.storage)
                thread.start()
                stack.callback(thread.join)
            yield

    def fail_stale_trials(self) -> None:
        """Fail and queue again the trials whose processes are gone."""

        def fail() -> None:
            with locked(self.storage):
                self._fail_stale_trials()

        retried(fail)

    def _fail_stale_trials(self) -> None:
        silent = self._silent()
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and self._is_stale(trial, silent):
                try:
                    self._end(trial)
                except StoreUnavailable as error:  # whether its training was done is known to the store alone
                    log.warning("trial %d: its process is gone; %s; looked at again later", trial.number, error)
                    return

    def _silent(self) -> Callable[[], set[int]]:
        return functools.cache(lambda: silent_trials(self.study, self.storage))

    def _is_stale(self, trial: FrozenTrial, silent: Callable[[], set[int]]) -> bool:
        # Lost while it was asked for: that happens under the lock, which this process holds.
        return trial._trial_id in self._unclaimed or is_stale(trial, silent)

    def _end(self, trial: FrozenTrial, reason: str = "") -> None:
        """End a trial that no process runs: as its finished run says, else failed; without a reason queue it again."""
        state, values = self._recover_result(trial) or (TrialState.FAIL, None)
        log.info("trial %d: %s; %s", trial.number, reason or "its process is gone", state.name.lower())
        if state == TrialState.FAIL and reason:
            self.storage.set_trial_user_attr(trial._trial_id, "reason", masked(reason))
        self.study.tell(trial.number, values if state == TrialState.COMPLETE else None, state, skip_if_finished=True)
        if state == TrialState.FAIL and not reason:
            queue_again(self.study, trial.number, _point(trial))

    def fail(self, claim: Claim, reason: str) -> None:
        """Fail a trial that its launcher is done with, unless it has ended by itself."""
        for trial in self._unfinished([claim]):
            self._end(trial, reason)

    def fail_lost(self, claims: list[Claim], reason: str) -> None:
        """Wait for trials whose launcher raised an error while some of its jobs may go on; fail those that are gone.

        Trials that no job has begun are queued again: a job that begins one later finds it closed.
        """
        while trials := self._unfinished(claims):
            silent = self._silent()
            for trial in trials:
                if "worker" not in trial.user_attrs:
                    self._end(trial)
                elif trial._trial_id in silent() or self._is_stale(trial, silent):
                    self._end(trial, reason)
            time.sleep(POLL)

    def _unfinished(self, claims: list[Claim]) -> list[FrozenTrial]:
        ids = {claim.trial_id for claim in claims}
        return [trial for trial in self.trials() if trial._trial_id in ids and trial.state == TrialState.RUNNING]

    def begun(self, claims: list[Claim]) -> bool:
        """Tell whether any of these trials has reached the process that trains it."""
        ids = {claim.trial_id for claim in claims}
        return any(trial._trial_id in ids and "worker" in trial.user_attrs for trial in self.trials())


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{key}: was {before.get(key, 'absent')}, now {now.get(key, 'absent')}"
        for key in sorted({*before, *now} - PLACES)
        if before.get(key) != now.get(key)
    ]


def queue_again(study: optuna.Study, number: int, point: Point) -> None:
    """Queue the point of a failed trial, unless that was done; the caller holds the lock."""
    if not any(other.user_attrs.get("replaces") == number for other in study.get_trials(deepcopy=False)):
        study.enqueue_trial(point, user_attrs={"replaces": number})


def _point(trial: FrozenTrial) -> Point:
    """Read what a trial tries, also of one that waits or was killed while it asked."""
    point: Point = trial._system_attrs.get("fixed_params") or trial.params
    return point
