"""Finds runs in the store and reads them back: their tags, metrics, config and files, checked before use."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xray_pneumonia.errors import InputError
from xray_pneumonia.masking import masked
from xray_pneumonia.tracking.locations import ArtifactMissing, inside, local_folder
from xray_pneumonia.tracking.process import day_and_minute, identity_tags, now
from xray_pneumonia.tracking.store import Store

RUN_ID = re.compile(r"[0-9a-f]{32}\Z")
CONFIGS = re.compile(r"config.*\.ya?ml\Z", re.IGNORECASE)
MAX_CONFIG = 2**20  # bytes
PAGE = 1000  # runs read at once
PARENT = "mlflow.parentRunId"
STATE = "state"  # the tag that the view Leaderboard shows, where a pruned trial is no finished training
STATES = {"RUNNING": "running", "FINISHED": "complete", "FAILED": "failed", "KILLED": "killed"}
OFFLINE_ID = "journal"  # the tag with the id that a run had on this machine before MLflow gave it one


@dataclass(frozen=True)
class StoredRun:
    """A run as it stands in the store."""

    store: Store
    run_id: str
    name: str
    status: str
    started: int  # milliseconds since 1970
    config: str  # empty where `read_run` has not checked it
    tags: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    artifact_uri: str = ""
    folder: Path | None = None  # of its artifacts; None where `read_run` has not found one on this machine

    @property
    def when(self) -> str:
        """The day and minute it started, in UTC."""
        return day_and_minute(self.started)

    @property
    def state(self) -> str:
        """What became of it: running, complete, pruned, failed or killed."""
        pruned = self.status == "FINISHED" and self.tags.get("sweep.state") == "PRUNED"
        return "pruned" if pruned else STATES.get(self.status, self.status.lower())

    def history(self, metric: str) -> list[tuple[int, float]]:
        """Read (epoch, value) pairs."""
        return sorted((one.step, one.value) for one in self.store.client.get_metric_history(self.run_id, metric))

    def local_folder(self) -> Path | None:
        """Find the folder of its artifacts, inside the store (else InputError); None where MLflow has to fetch them."""
        if self.folder is not None:
            return self.folder
        return self._located(self.artifact_uri, f"run_id={self.run_id}")

    def _located(self, uri: str, origin: str) -> Path | None:
        within = self.store.client.get_experiment(self.store.experiment_id).artifact_location
        return local_folder(uri, store_uri=self.store.uri, home=self.store.home, within=within, origin=origin)

    def artifact(self, name: str, *, target: Path | None = None) -> Path:
        """Locate one artifact (a file or folder), or fetch it into `target`, by default a temporary folder.

        Raises:
            ArtifactMissing: the run has no such artifact.
            InputError: it lies outside of the store.
        """
        folder = self.local_folder()
        if folder is not None:
            return inside(folder, name, origin=f"run {self.run_id}")
        try:
            return Path(self.store.client.download_artifacts(self.run_id, name, str(target) if target else None))
        except Exception as error:  # each kind of store has its own
            message = " ".join(str(error).split())
            raise ArtifactMissing(f"run {self.run_id}: has no artifact {name}: {message}") from error

    def bundle(self) -> Path:
        """Locate or fetch the folder with the model's weights and card.

        Raises:
            InputError: the run logged no model, or it is gone.
        """
        from mlflow.artifacts import download_artifacts

        if "model_id" not in self.tags:
            raise InputError(f"run {self.run_id}: holds no model; train it to its end first")
        try:
            place = self.store.client.get_logged_model(self.tags["model_id"]).artifact_location
            folder = self._located(place, "its model") or Path(
                download_artifacts(artifact_uri=place, tracking_uri=self.store.uri)
            )
        except Exception as error:
            raise InputError(
                f"run {self.run_id}: its model cannot be fetched: {' '.join(str(error).split())}"
            ) from error
        found = sorted(folder.glob("data/**/model.json"))
        if len(found) != 1:
            raise InputError(f"run {self.run_id}: its model holds {len(found)} cards, expected one; train it again")
        card = found[0].relative_to(folder)
        return inside(folder, str(card.parent), origin=f"run {self.run_id}: its model")


def read_run(store: Store, run_id: str, *, unfinished: bool = False) -> StoredRun:
    """Read a run with its config, proven to be the one it ran with; a finished one, unless `unfinished`.

    Raises:
        InputError: there is no such run, it is not finished, or its config or artifacts were altered.
    """
    from mlflow.exceptions import MlflowException

    if not RUN_ID.match(run_id):
        raise InputError(f"run_id={run_id!r}: a run id has 32 hex digits; `xray train` prints it on its last line")
    try:
        found = find_run(store, run_id)
        experiment = store.client.get_experiment(found.info.experiment_id)
    except MlflowException as error:
        cure = "`xray runs` lists them; home=DIR or tracking.uri= names another store"
        raise InputError(f"run_id={run_id}: there is no such run in {masked(store.uri)}; {cure}") from error
    run = _stored(replace(store, experiment_id=experiment.experiment_id, experiment_name=experiment.name), found)
    if found.info.lifecycle_stage != "active":
        raise InputError(f"run_id={run_id}: was deleted; bring it back in the MLflow UI or choose another")
    if run.status != "FINISHED" and not unfinished:
        raise InputError(f"run_id={run_id}: is {run.status}, not FINISHED; wait for it or choose another")
    run = replace(run, folder=run.local_folder())
    return replace(run, config=_config(run))


def find(store: Store, tags: Mapping[str, str], *, status: str | None = None) -> list[StoredRun]:
    """Find the runs of the store's experiment that carry all these tags, oldest first; their configs are not read."""
    parts = [f"tags.`{key}` = {quoted(value)}" for key, value in tags.items()]
    return search(store, [*parts, *([f"attributes.status = '{status}'"] if status else [])])


def quoted(value: str) -> str:
    """Quote a value for MLflow's search, which knows no escapes."""
    return f'"{value}"' if "'" in value else f"'{value}'"


def find_running(store: Store) -> list[StoredRun]:
    """Find the runs of every experiment of the store that are RUNNING."""
    experiments = store.client.search_experiments()
    stores = [replace(store, experiment_id=one.experiment_id, experiment_name=one.name) for one in experiments]
    return [run for one in stores for run in search(one, ["attributes.status = 'RUNNING'"])]


def search(store: Store, conditions: Sequence[str]) -> list[StoredRun]:
    """Find the runs of the store's experiment that meet conditions in MLflow's syntax, oldest first."""
    return [_stored(store, run) for run in list_runs(store, store.experiment_id, " and ".join(conditions))]


def list_runs(store: Store, experiment_id: str, conditions: str = "", *, deleted: bool = False) -> list[Any]:
    """List MLflow's entities of the runs of an experiment, oldest first, page by page."""
    from mlflow.entities import ViewType
    from mlflow.utils import get_results_from_paginated_fn

    def page(most: int, token: str | None) -> Any:
        view, order = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY, ["attributes.start_time ASC"]
        return store.client.search_runs([experiment_id], conditions, view, most, order, token)

    return get_results_from_paginated_fn(page, PAGE)  # type: ignore[no-any-return]


def get(store: Store, run_id: str) -> StoredRun:
    """Read one run of the store, without its config."""
    run = store.client.get_run(run_id)
    return _stored(replace(store, experiment_id=run.info.experiment_id), run)


def find_run(store: Store, run_id: str) -> Any:
    """Read MLflow's entity of a run by MLflow's id, or by the id that it had while the store was unavailable."""
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        experiments = [one.experiment_id for one in store.client.search_experiments()]
        found = store.client.search_runs(experiments, f"tags.{OFFLINE_ID} = '{run_id}'")
        if not found:
            raise
        return found[0]


def close(store: Store, run_id: str, *, status: str, reason: str, state: str | None = None) -> None:
    """End a run whose process is gone."""
    for key, value in {"reason": reason, STATE: state or STATES[status]}.items():
        store.client.set_tag(run_id, key, value)
    store.client.set_terminated(run_id, status, max(now(), store.client.get_run(run_id).info.start_time))


def mark_running(store: Store, run_id: str) -> None:
    """Mark a run as RUNNING in this process."""
    for key, value in {**identity_tags(), STATE: STATES["RUNNING"]}.items():
        store.client.set_tag(run_id, key, value)
    store.client.update_run(run_id, status="RUNNING")


def _stored(store: Store, run: Any) -> StoredRun:
    return StoredRun(
        store,
        run.info.run_id,
        run.info.run_name or run.info.run_id[:8],
        run.info.status,
        run.info.start_time,
        config="",
        tags=dict(run.data.tags),
        # How many images and patients there are: parameters, which version 0.1.0 logged as metrics.
        metrics={
            **{key: float(n) for key, n in run.data.params.items() if key.startswith("data/")},
            **run.data.metrics,
        },
        params=dict(run.data.params),
        artifact_uri=run.info.artifact_uri,
    )


def _config(run: StoredRun) -> str:
    """Read the one config of a run, as far as it is the one that its tag names."""
    origin = f"run_id={run.run_id}"
    found = sorted(name for name in _names(run) if CONFIGS.match(name))
    if found != ["config.yaml"]:
        raise InputError(f"{origin}: holds {found or 'no config'}, and not config.yaml alone ({masked(run.store.uri)})")
    path = run.artifact("config.yaml")
    if path.stat().st_size > MAX_CONFIG:
        raise InputError(f"{origin}: its config has {path.stat().st_size} bytes; no training of ours wrote it")
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != run.tags.get("config_sha256"):
        raise InputError(
            f"{origin}: config.yaml is not the one this run was started with (its sha256 differs from the tag "
            "config_sha256); an altered run is neither evaluated nor run again"
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{origin}: config.yaml is no text: {error}") from error


def _names(run: StoredRun) -> list[str]:
    if run.folder is None:
        return [entry.path for entry in run.store.client.list_artifacts(run.run_id)]
    if not run.folder.is_dir():
        raise InputError(f"run_id={run.run_id}: its files are gone from {run.folder}; bring them back, or home=DIR")
    return [path.name for path in run.folder.iterdir()]
