"""Recognises runs that a store no longer has: its database was swapped, the run or its experiment deleted."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from xray_pneumonia.tracking.database import renew_database
from xray_pneumonia.tracking.locations import creation_lock, lacks_run, sqlite_path
from xray_pneumonia.tracking.spool import Spool
from xray_pneumonia.tracking.store import Store
from xray_pneumonia.tracking.store_errors import is_unknown


class Deleted(Exception):
    """The run or its experiment was deleted in the store, where a person can bring it back."""


def lost_run(store: Store, run_id: str, error: Exception) -> bool:
    """Tell whether a run is gone from the store; make the tables of a removed or emptied SQLite file again."""
    path = sqlite_path(store.uri)
    if path is None:
        return is_unknown(error) and not _knows(lambda: store.client.get_run(run_id))
    lost = lacks_run(path, run_id)
    if lost or "readonly database" in str(error):  # what SQLite calls a file that was replaced under a connection
        with creation_lock(store.uri, store.home):
            renew_database(store.uri, store.home)
    return lost


def require_not_deleted(store: Store, run_id: str) -> None:
    """Raise Deleted where a run or its experiment was deleted, which a store words as a value that it refuses."""
    run = store.client.get_run(run_id).info
    experiment = store.client.get_experiment(run.experiment_id)
    if experiment.lifecycle_stage != "active":
        cure = f"mlflow experiments restore -x {run.experiment_id}"
        raise Deleted(f"the experiment {experiment.name} was deleted; bring it back with `{cure}`")
    if run.lifecycle_stage != "active":
        raise Deleted(f"the run was deleted; bring it back with `mlflow runs restore --run-id {run_id}`")


def lacks_entries(store: Store, spool: Spool, run_id: str) -> bool:
    """Compare what the store has of a run with its spool; a database swapped for an older copy of itself lacks some.

    Metrics are sent in groups that arrive as a whole, so the first one of each group is looked for.
    """
    run, groups = store.client.get_run(run_id), [group[0] for group in _values(spool, "metrics")]
    known = {("tags", key) for key in run.data.tags} | {("params", key) for key in run.data.params}
    sent = {(what, key) for what in ("tags", "params") for one in _values(spool, what) for key in one}
    histories = [store.client.get_metric_history(run_id, key) for key in {key for key, *_ in groups}]
    steps = {(one.key, one.step, one.timestamp) for history in histories for one in history}
    return (
        not sent - {("tags", "reason")} <= known  # a run that is resumed loses its reason
        or not {(key, step, when) for key, _, when, step in groups} <= steps
        or len(_datasets(run)) < len({one["digest"] for one in _values(spool, "dataset")})
        or (bool(_values(spool, "model")) and not _has_its_model(store, run.data.tags))
    )


def copy_back(store: Store, spool: Spool, run: Any) -> None:
    """Write what the store has of a run to its new spool, from which it can be made again should the store lose it."""
    names = [name for name in run.data.metrics if not name.startswith("system/")]
    metrics = [one for name in names for one in store.client.get_metric_history(run.info.run_id, name)]
    by_step = groupby(sorted(metrics, key=lambda one: one.step), lambda one: one.step)
    groups = [[[one.key, one.value, one.timestamp, one.step] for one in group] for _, group in by_step]
    datasets = [
        {"name": one.dataset.name, "digest": one.dataset.digest, "source": one.dataset.source, "stage": tag.value}
        for one in _datasets(run)
        for tag in one.tags
    ]
    entries = [("params", run.data.params), *(("dataset", one) for one in datasets), *(("metrics", g) for g in groups)]
    spool.append(*entries)
    spool.mark_sent(max(entry.end for entry in spool.entries()))


def _values(spool: Spool, what: str) -> list[Any]:
    return [entry.value for entry in spool.entries() if entry.what == what and entry.value]


def _datasets(run: Any) -> list[Any]:
    return list(run.inputs.dataset_inputs) if run.inputs else []


def _has_its_model(store: Store, tags: Mapping[str, str]) -> bool:
    return "model_id" in tags and _knows(lambda: store.client.get_logged_model(tags["model_id"]))


def _knows(question: Any) -> bool:
    try:
        question()
    except Exception as error:
        if is_unknown(error):
            return False
        raise
    return True
