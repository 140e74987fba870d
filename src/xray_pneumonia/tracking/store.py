"""The store of all runs: one absolute place, created once, whatever folder a command starts in."""

import logging
import os
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from filelock import FileLock

from xray_pneumonia.errors import InputError, nearest
from xray_pneumonia.tracking.moved import follow
from xray_pneumonia.tracking.store_errors import StoreAway, asked, require_not_just_away
from xray_pneumonia.tracking.store_errors import first_line as first_line
from xray_pneumonia.tracking.store_errors import masked as masked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a hospital's runs are nobody else's business
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # no model of ours needs it
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the last line there is the result
# A server that is gone must say so in seconds: MLflow's own limits are seven retries of two minutes each.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false")  # it may ask for an hour
KIND = {"mlflow.experimentKind": "custom_model_development"}  # else the UI shows the room of language models first
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """The config group `tracking`.

    Args:
        uri: of the MLflow store; null takes MLFLOW_TRACKING_URI, else `mlflow.db` in `home`.
        experiment_name: the experiment that holds the run; made when missing.
        run_name: shown in the MLflow UI; null lets MLflow invent one.
        system_metrics: sample processor, memory and GPU while training.
        required: do not train when the store is away; else the run is kept here and sent by `xray doctor sync`.
    """

    uri: str | None
    experiment_name: str
    run_name: str | None
    system_metrics: bool
    required: bool


@dataclass(frozen=True)
class Store:
    """An MLflow store, and one experiment in it; its id is empty where the store could not be asked for it."""

    uri: str
    experiment_id: str
    experiment_name: str
    home: Path

    @property
    def client(self) -> "MlflowClient":
        """Talk to MLflow."""
        return mlflow_client(self.uri)


def resolve_uri(uri: str | None, home: Path) -> str:
    """Choose the store: the config's, else MLFLOW_TRACKING_URI, else SQLite in `home`.

    Raises:
        InputError: the URI is one that MLflow no longer accepts or that is commonly mistyped.
    """
    chosen = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.resolve() / 'mlflow.db'}"
    scheme = urlsplit(chosen).scheme
    if scheme in {"", "file"}:
        raise InputError(
            f"tracking.uri={chosen}: MLflow no longer keeps runs in plain files; write "
            f"sqlite:///{home.resolve() / 'mlflow.db'} (existing runs move with `mlflow migrate-filestore`)"
        )
    if scheme == "postgres":
        raise InputError(f"tracking.uri={masked(chosen)}: write postgresql:// instead of postgres://")
    return chosen


def open_store(settings: TrackingSettings, *, home: Path) -> Store:
    """Connect, creating database and experiment where they are missing, one process at a time.

    Raises:
        StoreAway: the store does not answer.
        InputError: the store is damaged, of another version, or the experiment was deleted.
    """
    uri = resolve_uri(settings.uri, home)
    home.mkdir(parents=True, exist_ok=True)
    _require_database(uri)
    _require_writable(uri)
    require_not_just_away(uri)
    with FileLock(home / ".store.lock"):
        if uri.startswith("sqlite:///"):
            follow(Path(uri.removeprefix("sqlite:///")))
        experiment_id = ensure_experiment(uri, settings.experiment_name, home)
    log.info("tracking to %s, experiment %s", masked(uri), settings.experiment_name)
    return Store(uri, experiment_id, settings.experiment_name, home.resolve())


def open_or_journal(settings: TrackingSettings, *, home: Path) -> Store:
    """Connect as `open_store` does; a store that is away is no reason not to train, unless it is required.

    Raises:
        StoreAway: the store does not answer, and `tracking.required` is set.
        InputError: the store is wrong in a way that waiting does not mend.
    """
    try:
        return open_store(settings, home=home)
    except StoreAway as error:
        if settings.required:
            raise StoreAway(f"{error}; start it, or set tracking.required=false to train without") from error
        log.warning("%s; the run is kept in %s until `xray doctor sync`", error, home)
        return Store(resolve_uri(settings.uri, home), "", settings.experiment_name, home.resolve())


def open_existing(settings: TrackingSettings, *, home: Path) -> Store:
    """Connect to look at what is there; makes neither a database nor an experiment.

    Raises:
        InputError: there is no such database or experiment.
    """
    store = open_database(settings, home=home)
    found = asked(store.uri, lambda: store.client.get_experiment_by_name(settings.experiment_name))
    if found is None:
        names = [experiment.name for experiment in store.client.search_experiments()]
        hint = nearest(settings.experiment_name, names) or f"; there are {', '.join(names)}"
        raise InputError(f"experiment_name={settings.experiment_name}: no such experiment in {masked(store.uri)}{hint}")
    return replace(store, experiment_id=str(found.experiment_id))


def open_database(settings: TrackingSettings, *, home: Path) -> Store:
    """Connect to read runs by their ids, whatever their experiments; makes nothing.

    Raises:
        InputError: there is no such database.
    """
    uri = resolve_uri(settings.uri, home)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise InputError(f"tracking.uri={uri}: there is no such database; home= or tracking.uri= names another")
    _require_database(uri)
    return Store(uri, "", settings.experiment_name, home.resolve())


def open_existing_any(settings: TrackingSettings, *, home: Path) -> tuple[Store, int]:
    """Connect to look at every experiment there is, and count them; makes nothing.

    Raises:
        StoreAway: the store does not answer.
        InputError: there is no such database, or it cannot be used.
    """
    uri = resolve_uri(settings.uri, home)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise InputError(f"tracking.uri={uri}: there is no such database; home= or tracking.uri= names another")
    _require_database(uri)
    count = len(asked(uri, lambda: mlflow_client(uri).search_experiments()))
    return Store(uri, "", settings.experiment_name, home.resolve()), count


@lru_cache(maxsize=4)
def mlflow_client(uri: str) -> "MlflowClient":
    """Make MLflow's client once for each store."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks, passwords and all
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # every single retry
    from mlflow import MlflowClient  # over a second to import; a wrong config is found without it

    return MlflowClient(uri)


def _require_database(uri: str) -> None:
    """Refuse a file that is no SQLite database before anything touches it."""
    if not uri.startswith("sqlite:///"):
        return
    path = Path(uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not _is_sqlite(path):
        raise InputError(f"tracking.uri={uri}: {path} is no SQLite database; move it away or name another store")


def _require_writable(uri: str) -> None:
    """Say at once what MLflow would try ten times."""
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and path.exists():
        for place in (path, path.parent):
            if not os.access(place, os.W_OK):
                raise InputError(f"tracking.uri={uri}: {place} is not writable; make it so, or name another store")


def _is_sqlite(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def ensure_experiment(uri: str, name: str, home: Path) -> str:
    """Give the id of an experiment, making it where it is missing; the caller holds a lock.

    Raises:
        StoreAway: the store does not answer.
        InputError: the store cannot be used, or the experiment was deleted.
    """

    def ask() -> "tuple[str, Experiment | None]":
        client = mlflow_client(uri)
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                place = _artifact_location(uri, name, home)
                return str(client.create_experiment(name, artifact_location=place, tags=KIND)), None
            except Exception:
                found = client.get_experiment_by_name(name)  # another machine may have been faster
                if found is None:
                    raise
        return str(found.experiment_id), found

    experiment_id, found = asked(uri, ask)
    if found is not None and found.lifecycle_stage != "active":
        raise InputError(
            f"tracking.experiment_name={name}: this experiment was deleted; bring it back with "
            f"`mlflow experiments restore -x {experiment_id}` or choose another name"
        )
    return experiment_id


def _artifact_location(uri: str, name: str, home: Path) -> str | None:
    """Keep the artifacts of a local store beside it; a server knows its own place."""
    if not uri.startswith("sqlite:///"):
        return None
    folder = re.sub(r"[^\w.-]+", "_", name).strip(".") or "experiment"
    return (home.resolve() / "artifacts" / folder).as_uri()
