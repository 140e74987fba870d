"""A study that survives: opened or continued, with every trial accounted for whatever was killed."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from xray_pneumonia.errors import InputError
from xray_pneumonia.sweeps import space
from xray_pneumonia.sweeps.liveness import silence
from xray_pneumonia.sweeps.plan import Plan
from xray_pneumonia.sweeps.samplers import build_pruner, build_sampler
from xray_pneumonia.sweeps.storage import locked, patiently
from xray_pneumonia.tracking.process import alive, identity

MAXIMIZE, MINIMIZE = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
log = logging.getLogger(__name__)

# Asked about a trial whose process is gone: closes its runs truthfully; gives the state and the values
# of one that had been trained to its end, else None.
Inquest = Callable[[FrozenTrial], tuple[TrialState, list[float]] | None]


@dataclass(frozen=True)
class Claim:
    """A trial that this process is to run."""

    number: int
    trial_id: int
    point: space.Point


class SweepStudy:
    """One study and what this command may do with it.

    Args:
        plan: the sweep.
        storage: its database.
        session: names this command, with all its workers: failures of another one are tried again.
        inquest: see `Inquest`.
    """

    def __init__(self, plan: Plan, storage: RDBStorage, *, session: str, inquest: Inquest) -> None:
        self._plan, self._storage, self.session, self._inquest = plan, storage, session, inquest
        directions = [MAXIMIZE if mode == "max" else MINIMIZE for mode in plan.objectives.values()]
        with locked(storage):
            self.study = optuna.create_study(
                study_name=plan.name,
                storage=storage,
                directions=directions,
                pruner=build_pruner(plan.settings, max_epochs=plan.max_epochs),
                load_if_exists=True,
            )
            self._require_same()
            self._queue_points()

    def _require_same(self) -> None:
        """Refuse to mix values that mean different things."""
        asked = json.loads(json.dumps(self._plan.describe()))
        known = self.study.user_attrs.get("sweep")
        if known is None:
            self.study.set_user_attr("sweep", asked)
        elif known != asked:
            before, now = _flat(known), _flat(asked)
            changed = [
                f"{key}: was {before.get(key, 'absent')}, now {now.get(key, 'absent')}"
                for key in sorted({*before, *now})
                if before.get(key) != now.get(key)
            ]
            raise InputError(
                f"sweep.name={self._plan.name}: this study is another one; choose another name, or ask for "
                "the same:\n  " + "\n  ".join(changed)
            )
        if self.study.user_attrs.get("n_trials") != self._plan.n_trials:
            self.study.set_user_attr("n_trials", self._plan.n_trials)

    def _queue_points(self) -> None:
        """Queue what must be tried and is not there yet, and again what had failed or was killed."""
        trials = self.trials()
        there = [_point(trial) for trial in trials]
        for point in self._plan.points:
            if point not in there:
                self.study.enqueue_trial(point, user_attrs={"queued": True})
        for trial in trials:
            if trial.state == TrialState.FAIL:
                self._queue_again(trial, trials)

    def _queue_again(self, trial: FrozenTrial, trials: list[FrozenTrial]) -> None:
        if not any(other.user_attrs.get("replaces") == trial.number for other in trials):
            self.study.enqueue_trial(_point(trial), user_attrs={"replaces": trial.number})

    def trials(self) -> list[FrozenTrial]:
        """Read all trials; not to be changed."""
        return patiently(lambda: self.study.get_trials(deepcopy=False))

    def claim(self, count: int) -> list[Claim]:
        """Take up to `count` trials; none when the budget is spent, others are at its rest, or too many failed."""
        return patiently(lambda: self._claim(count))

    def _claim(self, count: int) -> list[Claim]:
        with locked(self._storage):
            trials = self._bury()
            if self._too_many(trials):
                return []
            claims: list[Claim] = []
            for _ in range(min(count, self._room(trials))):
                claims.append(self._ask(number=len(trials) if not claims else len(self.trials())))
            return claims

    def room(self) -> int:
        """Count the trials that still have to be started."""
        return self._room(self.trials())

    def _room(self, trials: list[FrozenTrial]) -> int:
        spent = sum(t.state in DONE or t.state == TrialState.RUNNING or self._failed_here(t) for t in trials)
        room = self._plan.n_trials - spent
        if self._plan.kind == "grid":  # its points wait in the queue, and there are no others
            room = min(room, sum(t.state == TrialState.WAITING for t in trials))
        return room

    def running(self) -> int:
        """Count the trials that run, here or elsewhere."""
        return sum(trial.state == TrialState.RUNNING for trial in self.trials())

    def failures(self) -> list[FrozenTrial]:
        """List the trials of this command that failed by themselves."""
        return [trial for trial in self.trials() if self._failed_here(trial)]

    def too_many(self) -> bool:
        """Tell whether more trials of this command failed than `sweep.max_failures`."""
        return self._too_many(self.trials())

    def _too_many(self, trials: list[FrozenTrial]) -> bool:
        most = self._plan.settings.max_failures
        return most is not None and sum(self._failed_here(trial) for trial in trials) > most

    def _failed_here(self, trial: FrozenTrial) -> bool:
        attrs = trial.user_attrs
        session = attrs.get("owner", {}).get("session")
        return trial.state == TrialState.FAIL and session == self.session and "reason" in attrs

    def _ask(self, *, number: int) -> Claim:
        self.study.sampler = build_sampler(self._plan.settings, kind=self._plan.kind, number=number)
        trial = self.study.ask()
        trial.set_user_attr("owner", {**identity(), "session": self.session})
        return Claim(trial.number, trial._trial_id, self._plan.space.suggest(trial))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every other command that works on this database out for a moment."""
        with locked(self._storage):
            yield

    def bury(self) -> None:
        """Fail and replace the trials whose processes are gone."""
        patiently(self._bury_alone)

    def _bury_alone(self) -> None:
        with self.alone():
            self._bury()

    def _bury(self) -> list[FrozenTrial]:
        """Bury, and list the trials as they stand then."""
        trials = self.trials()
        gone = [trial for trial in trials if trial.state == TrialState.RUNNING and not self._alive(trial)]
        for trial in gone:
            self.close(trial)
        return self.trials() if gone else trials

    def _alive(self, trial: FrozenTrial) -> bool:
        who: dict[str, Any] | None = trial.user_attrs.get("worker") or trial.user_attrs.get("owner")
        if who is None:  # killed while it asked: that happens under the lock, which we hold
            return False
        if who == identity() and "worker" in trial.user_attrs:
            return True
        started = (datetime.now() - (trial.datetime_start or datetime.now())).total_seconds()
        silent = lambda: silence(self._storage, trial._trial_id, since=started)  # noqa: E731
        return alive(who, silent=silent, stale_after=self._plan.settings.stale_after)

    def close(self, trial: FrozenTrial) -> None:
        """Close a trial that nobody runs any more: complete if it was trained to its end, else failed and replaced."""
        known = self._inquest(trial)
        state, values = known or (TrialState.FAIL, None)
        log.info("trial %d: its process is gone; %s", trial.number, state.name.lower())
        self.study.tell(trial.number, values if state == TrialState.COMPLETE else None, state, skip_if_finished=True)
        if state == TrialState.FAIL:
            self._queue_again(trial, self.trials())

    def fail(self, claim: Claim, reason: str) -> None:
        """Record why a trial did not even start."""
        trial = optuna.Trial(self.study, claim.trial_id)
        if self._storage.get_trial(claim.trial_id).state == TrialState.RUNNING:
            trial.set_user_attr("reason", reason)
            self.study.tell(trial, state=TrialState.FAIL)

    def unfinished(self, claims: list[Claim]) -> list[Claim]:
        """List the claims whose trials still run."""
        states = {trial.number: trial.state for trial in self.trials()}
        return [claim for claim in claims if states[claim.number] == TrialState.RUNNING]

    def begun(self, claims: list[Claim]) -> bool:
        """Tell whether any of these trials has reached a process of its own."""
        numbers = {claim.number for claim in claims}
        return any(trial.number in numbers and "worker" in trial.user_attrs for trial in self.trials())


def _point(trial: FrozenTrial) -> space.Point:
    """Read what a trial tries, also of one that waits or was killed while it asked."""
    point: space.Point = trial._system_attrs.get("fixed_params") or trial.params
    return point


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
