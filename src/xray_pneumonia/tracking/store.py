"""Opens the MLflow store: one absolute URI, its database and experiment created once, a moved store repaired."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import MaxLen

from xray_pneumonia.errors import InputError, nearest
from xray_pneumonia.masking import masked
from xray_pneumonia.tracking.database import make_database, quieten, require_database
from xray_pneumonia.tracking.leaderboard import TAG, leaderboard
from xray_pneumonia.tracking.locations import (
    ARTIFACTS,
    creation_lock,
    is_web_address,
    repair_moved,
    require_writable,
    sqlite_path,
    sqlite_uri,
)
from xray_pneumonia.tracking.store_errors import (
    START,
    StoreUnavailable,
    classified,
    query,
    require_not_just_unavailable,
    within,
)
from xray_pneumonia.types import Text

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a hospital's runs are nobody else's business
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # no model of ours needs it
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the last line there is the result
# A dead server must be noticed in seconds: MLflow's own limits are seven retries of two minutes each.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false")  # it may ask for an hour
KIND = {"mlflow.experimentKind": "custom_model_development"}  # else the UI opens its pages for language models
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """The config group `tracking`."""

    uri: Text | None  # of the MLflow store; null takes MLFLOW_TRACKING_URI, else `mlflow.db` in `home`
    experiment_name: Annotated[Text, MaxLen(500)]  # the experiment that holds the run; made when missing
    run_name: Text | None  # shown in the MLflow UI; null names a training by its choices (`resnet-strong-s0`)
    system_metrics: bool  # sample processor, memory and GPU while training
    required: bool  # do not train when the store is unavailable; else the run is spooled for `xray doctor sync`


@dataclass(frozen=True)
class Store:
    """An MLflow store, and one experiment in it; its id is empty where the store could not be asked for it."""

    uri: str
    experiment_id: str
    experiment_name: str
    home: Path

    @property
    def client(self) -> "MlflowClient":
        """MLflow's client of the store."""
        return mlflow_client(self.uri)


def resolve_uri(uri: str | None, home: Path) -> str:
    """Choose the store: the config's, else MLFLOW_TRACKING_URI, else SQLite in `home`.

    Raises:
        InputError: the URI is one that MLflow no longer accepts or that is commonly mistyped.
    """
    local = sqlite_uri(home.resolve() / "mlflow.db")
    chosen = uri or os.environ.get("MLFLOW_TRACKING_URI") or local
    scheme = chosen.partition(":")[0].lower() if ":" in chosen else ""
    if scheme.startswith("http") and not is_web_address(chosen):
        raise InputError(f"tracking.uri={masked(chosen)}: is no address; write {scheme}://HOST:PORT")
    if scheme in {"", "file"}:
        raise InputError(
            f"tracking.uri={masked(chosen)}: MLflow no longer keeps runs in plain files; write {local} "
            "(existing runs move with `mlflow migrate-filestore`)"
        )
    if scheme == "sqlite" and "?" in chosen and "=" not in chosen.partition("?")[2]:
        raise InputError(f"tracking.uri={chosen}: in an address the sign ? ends the path; write it %3F")
    if scheme == "sqlite" and ":memory:" in chosen:
        raise InputError(f"tracking.uri={chosen}: would be gone with the command; write {local}")
    if scheme == "postgres":
        raise InputError(f"tracking.uri={masked(chosen)}: write postgresql:// instead of postgres://")
    return chosen


def open_store(settings: TrackingSettings, *, home: Path, existing: bool = False) -> Store:
    """Connect, creating database and experiment where they are missing, one process at a time.

    Raises:
        StoreUnavailable: the store does not answer.
        InputError: the store is damaged, of another version, or the experiment was deleted; with `existing` also where
            there is no database yet.
    """
    uri = resolve_uri(settings.uri, home)
    if existing:
        _require_existing(uri)
    home.mkdir(parents=True, exist_ok=True)
    if (path := sqlite_path(uri)) and path.exists():
        require_writable(path, f"tracking.uri={uri}")
    require_not_just_unavailable(uri)
    with creation_lock(uri, home):  # a database that another process is creating is empty for a moment
        require_database(uri)
        make_database(uri, home)
        repair_moved(uri, home)
        experiment_id = ensure_experiment(uri, settings.experiment_name, home)
    log.info("tracking to %s, experiment %s", masked(uri), settings.experiment_name)
    return Store(uri, experiment_id, settings.experiment_name, home.resolve())


def open_or_offline(settings: TrackingSettings, *, home: Path) -> Store:
    """Connect as `open_store` does; an unavailable store does not prevent training, unless it is required.

    Raises:
        StoreUnavailable: the store does not answer, and `tracking.required` is set.
        InputError: the store cannot be used, now or later.
    """
    try:
        return open_store(settings, home=home)
    except StoreUnavailable as error:
        if settings.required:
            raise StoreUnavailable(f"{error}; start it, or set tracking.required=false to train without") from error
        log.warning("%s; the run is kept in %s until `xray doctor sync`", error, home)
        return Store(resolve_uri(settings.uri, home), "", settings.experiment_name, home.resolve())


def try_upload(store: Store, run_id: str, file: Path, *, required: bool) -> None:
    """Send one small file before work begins: artifacts may go elsewhere than metrics, with a login of their own.

    Raises:
        StoreUnavailable: it cannot be sent now, and must be.
        InputError: it can never be sent.
    """
    try:
        within(START, lambda: store.client.log_artifact(run_id, str(file)), name=f"tracking.uri={masked(store.uri)}")
    except Exception as error:  # each kind of store has its own
        refusal = classified(error, uri=store.uri)
        if required or not isinstance(refusal, StoreUnavailable):
            raise refusal from error
        log.warning("%s; files are kept in %s until they can be sent", refusal, store.home)


def open_existing(settings: TrackingSettings, *, home: Path) -> Store:
    """Connect to read one experiment; creates neither a database nor an experiment.

    Raises:
        InputError: there is no such database or experiment.
    """
    store = open_database(settings, home=home)
    found = query(store.uri, lambda: store.client.get_experiment_by_name(settings.experiment_name))
    if found is None:
        names = [experiment.name for experiment in store.client.search_experiments()]
        hint = nearest(settings.experiment_name, names) or f"; there are {', '.join(names)}"
        raise InputError(f"experiment_name={settings.experiment_name}: no such experiment in {masked(store.uri)}{hint}")
    return replace(store, experiment_id=str(found.experiment_id))


def open_database(settings: TrackingSettings, *, home: Path) -> Store:
    """Connect to read runs by their ids, whatever their experiments; creates nothing.

    Raises:
        InputError: there is no such database.
    """
    uri = resolve_uri(settings.uri, home)
    _require_existing(uri)
    require_database(uri)
    repair_moved(uri, home)
    return Store(uri, "", settings.experiment_name, home.resolve())


def _require_existing(uri: str) -> None:
    path = sqlite_path(uri)
    if path and not path.exists():
        raise InputError(f"tracking.uri={uri}: there is no such database; home= or tracking.uri= names another")


@lru_cache(maxsize=4)
def mlflow_client(uri: str) -> "MlflowClient":
    """Make MLflow's client once for each store."""
    quieten()
    from mlflow import MlflowClient  # over a second to import; a wrong config is found without it

    if sqlite_path(uri):
        from mlflow.store.db import utils

        # It makes the folder of an address as it is spelt, `what%3F` beside `what?`; that of the database is there.
        utils._make_parent_dirs_if_sqlite = lambda db_uri: None
    return MlflowClient(uri)


def ensure_experiment(uri: str, name: str, home: Path) -> str:
    """Return the id of an experiment, creating it where it is missing; the caller holds a lock.

    Raises:
        StoreUnavailable: the store does not answer.
        InputError: the store cannot be used, or the experiment was deleted.
    """

    def ask() -> "tuple[str, Experiment | None]":
        client = mlflow_client(uri)
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                location = _artifact_location(uri, name, home)
                return str(
                    client.create_experiment(name, artifact_location=location, tags={**KIND, TAG: leaderboard()})
                ), None
            except Exception:
                found = client.get_experiment_by_name(name)  # another machine may have been faster
                if found is None:
                    raise
        return str(found.experiment_id), found

    experiment_id, found = query(uri, ask)
    if found is not None and found.lifecycle_stage != "active":
        raise InputError(
            f"tracking.experiment_name={name}: this experiment was deleted; bring it back with "
            f"`mlflow experiments restore -x {experiment_id}` or choose another name"
        )
    return experiment_id


def show_searched(store: Store, parameters: Sequence[str]) -> None:
    """Make the parameters of a sweep axes of the view Leaderboard; a store that does not answer keeps the old ones."""
    try:
        query(store.uri, lambda: store.client.set_experiment_tag(store.experiment_id, TAG, leaderboard(parameters)))
    except InputError as error:
        log.info("the view Leaderboard keeps its axes: %s", error)


def ensure_leaderboard(store: Store) -> None:
    """Make the view Leaderboard of an experiment that an older version, or MLflow's page, has made."""
    if TAG not in store.client.get_experiment(store.experiment_id).tags:
        store.client.set_experiment_tag(store.experiment_id, TAG, leaderboard())


def _artifact_location(uri: str, name: str, home: Path) -> str | None:
    """Keep the artifacts of a local store in the home; a server knows its own place."""
    if sqlite_path(uri) is None:
        return None
    folder = re.sub(r"[^\w.-]+", "_", name).strip(".") or "experiment"
    return (home.resolve() / ARTIFACTS / folder).as_uri()
