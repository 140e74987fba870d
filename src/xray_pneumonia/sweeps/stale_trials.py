"""Finds stale trials: running in the study, while no process runs them."""

import math
from collections.abc import Callable
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from xray_pneumonia.sweeps.storage import just_failed
from xray_pneumonia.tracking.process import alive


def silent_trials(study: optuna.Study, storage: RDBStorage) -> set[int]:
    """Return the ids of running trials that gave no heartbeat within the grace period.

    Optuna never counts a trial among them that was killed before its first heartbeat; it gets one here. After the
    database was away every trial seems silent, until the living ones had time for a heartbeat.
    """
    if just_failed():
        return set()
    query = sa.text(
        "select trial_id from trials where study_id = :study and state = 'RUNNING' "
        "and trial_id not in (select trial_id from trial_heartbeats)"
    )
    with storage.engine.connect() as connection:
        without = list(connection.execute(query, {"study": study._study_id}).scalars())
    for trial_id in without:
        storage.record_heartbeat(trial_id)
    return set(storage._get_stale_trial_ids(study._study_id))


def is_stale(trial: FrozenTrial, silent: Callable[[], set[int]]) -> bool:
    """Tell whether no process runs a trial: on this machine by the process, on others by the heartbeat."""
    who: dict[str, Any] | None = trial.user_attrs.get("worker") or trial.user_attrs.get("owner")
    if who is None:  # killed, or the database was away, while it asked: that happens under the lock of the database
        return True
    return not alive(who, silent=lambda: math.inf if trial._trial_id in silent() else 0.0, stale_after=1)
