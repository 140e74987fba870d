"""Signs of life of a trial, in its study's database; `tracking.liveness` judges them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from optuna.storages import RDBStorage

BEAT = 10.0  # seconds between two signs of life


def silence(storage: RDBStorage, trial_id: int, *, since: float) -> float:
    """Count the seconds since a trial's last sign of life, on the database's own clock.

    Args:
        storage: of the study.
        trial_id: of the trial.
        since: seconds since it started, for a trial that never gave a sign.
    """
    query = sa.text("select heartbeat, current_timestamp from trial_heartbeats where trial_id = :id")
    with storage.engine.connect() as connection:
        row = connection.execute(query, {"id": trial_id}).first()
    if row is None:
        return since
    beat, now = (_moment(value) for value in row)
    return now - beat


def _moment(value: Any) -> float:
    import pandas as pd

    return float(pd.Timestamp(value).tz_localize(None).timestamp())


@contextmanager
def heartbeat(storage: RDBStorage, trial_id: int) -> Iterator[None]:
    """Give a sign of life while the block runs; a database that is away for a while is no reason to stop."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT):
            with suppress(Exception):
                storage.record_heartbeat(trial_id)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=1)
