"""Ends the runs of a sweep's trials whose processes are gone, and reads from them what was trained to its end."""

import json
import logging

from optuna.trial import FrozenTrial, TrialState

from xray_pneumonia.sweeps.study import DONE, SweepStudy
from xray_pneumonia.tracking import stored_runs
from xray_pneumonia.tracking.run import Run
from xray_pneumonia.tracking.store import Store
from xray_pneumonia.tracking.store_errors import query
from xray_pneumonia.tracking.sync import sync

log = logging.getLogger(__name__)


def recover_result(store: Store, trial: FrozenTrial) -> tuple[TrialState, list[float]] | None:
    """Close the runs of a trial whose process is gone, and read the result of one that was trained to its end.

    What its process had logged but not sent, perhaps that it was done, is sent first, if it ran on this machine.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    _send_late(store, {"sweep.trial_id": str(trial._trial_id)})
    return query(store.uri, lambda: _recover(store, trial))


def _send_late(store: Store, tags: dict[str, str]) -> None:
    """Send what killed processes of this machine left unsent of the runs with these tags."""
    for sent in sync(store.uri, store.home, tags=tags):
        log.info("run %s: %s", sent.run_id, sent.problem or f"sent late, {sent.status}")


def _recover(store: Store, trial: FrozenTrial) -> tuple[TrialState, list[float]] | None:
    runs = stored_runs.find(store, {"sweep.trial_id": str(trial._trial_id)})
    runs = [run for run in runs if run.tags.get("sweep.trial") == str(trial.number)]
    for run in runs:
        if run.status == "RUNNING":
            stored_runs.close(store, run.run_id, status="KILLED", reason="its process is gone")
    for run in runs:
        if run.status == "FINISHED" and "sweep.values" in run.tags and "sweep.replicate" not in run.tags:
            values = [float(value) for value in json.loads(run.tags["sweep.values"])]
            return TrialState[run.tags["sweep.state"]], values
    return None


def close_orphaned_runs(store: Store, study: SweepStudy, parent: Run, *, name: str) -> None:
    """Close the runs that could not be closed when their trials ended, because the store did not answer.

    What they left in the journals of this machine is sent; those of other machines end as their trials did.
    """
    _send_late(store, {"sweep.name": name})
    states = {str(trial.number): trial.state for trial in study.trials()}
    for run in stored_runs.find(store, {"sweep.name": name}, status="RUNNING"):
        state = states.get(run.tags.get("sweep.trial", ""), TrialState.FAIL)
        if state.is_finished() and run.run_id not in {parent.run_id, parent.mlflow_id}:
            status = "FINISHED" if state in DONE else "FAILED"
            reason = "the store did not answer when its trial ended"
            ended = "pruned" if state == TrialState.PRUNED else None
            stored_runs.close(store, run.run_id, status=status, reason=reason, state=ended)


def drop_late_runs(store: Store, trial_id: int, *, reason: str) -> None:
    """Mark the finished runs of a trial that was given up and queued again before its process could report.

    Raises:
        StoreUnavailable: the store does not answer.
    """

    def mark() -> None:
        for run in stored_runs.find(store, {"sweep.trial_id": str(trial_id)}, status="FINISHED"):
            stored_runs.close(store, run.run_id, status="KILLED", reason=reason)

    query(store.uri, mark)
