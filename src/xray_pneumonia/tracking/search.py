"""Runs that are there already: found by their tags, described in plain values, closed truthfully."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xray_pneumonia.tracking.places import inside, local_folder
from xray_pneumonia.tracking.process import who
from xray_pneumonia.tracking.store import Store

PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class Found:
    """A run as it stands in the store."""

    run_id: str
    name: str
    status: str
    start: int
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    artifact_uri: str


def find(store: Store, tags: Mapping[str, str], *, status: str | None = None) -> list[Found]:
    """Find the runs of the store's experiment that carry all these tags, oldest first."""
    parts = [f"tags.`{key}` = '{_quoted(value)}'" for key, value in tags.items()]
    return search(store, [*parts, *([f"attributes.status = '{status}'"] if status else [])])


def search(store: Store, conditions: Sequence[str]) -> list[Found]:
    """Find the runs of the store's experiment that meet all conditions, oldest first."""
    return _search(store, [store.experiment_id], conditions)


def everywhere(store: Store, conditions: Sequence[str]) -> list[Found]:
    """Find the runs of every experiment of the store that meet all conditions, oldest first."""
    return _search(store, [one.experiment_id for one in store.client.search_experiments()], conditions)


def _search(store: Store, experiments: list[str], conditions: Sequence[str]) -> list[Found]:
    found: list[Found] = []
    token = None
    while True:
        page = store.client.search_runs(
            experiments, " and ".join(conditions), order_by=["attributes.start_time ASC"], page_token=token
        )
        found += [_described(run) for run in page]
        token = page.token
        if not token:
            return found


def get(store: Store, run_id: str) -> Found:
    """Read one run."""
    return _described(store.client.get_run(run_id))


def history(store: Store, run_id: str, metric: str) -> list[tuple[int, float]]:
    """Read (epoch, value) pairs."""
    return sorted((entry.step, entry.value) for entry in store.client.get_metric_history(run_id, metric))


def artifact(store: Store, found: Found, name: str, *, folder: Path) -> Path | None:
    """Fetch an artifact to a folder, or name it where it lies; None where the run has none.

    Raises:
        InputError: the run's files lie outside of the store.
    """
    from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR
    from mlflow.exceptions import MlflowException

    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)  # one bar for each small file
    within = store.client.get_experiment(store.experiment_id).artifact_location
    place = local_folder(store, found.artifact_uri, within=within, origin=f"run {found.run_id}")
    if place is not None:
        return inside(place, name, origin=f"run {found.run_id}") if (place / name).exists() else None
    try:
        return Path(store.client.download_artifacts(found.run_id, name, str(folder)))
    except (MlflowException, OSError):
        return None


def close(store: Store, run_id: str, *, status: str, reason: str) -> None:
    """End a run whose process is gone."""
    store.client.set_tag(run_id, "reason", reason)
    store.client.set_terminated(run_id, status)


def mark_running(store: Store, run_id: str) -> None:
    """Take a run over in the name of this process."""
    for key, value in who().items():
        store.client.set_tag(run_id, key, value)
    store.client.update_run(run_id, status="RUNNING")


def _quoted(value: str) -> str:
    return value.replace("'", "''")


def _described(run: Any) -> Found:
    tags = dict(run.data.tags)
    return Found(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id[:8],
        status=run.info.status,
        start=run.info.start_time,
        tags=tags,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        artifact_uri=run.info.artifact_uri,
    )
