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

from xray_pneumonia.errors import InputError
from xray_pneumonia.schema import nearest
from xray_pneumonia.tracking.moved import follow

if TYPE_CHECKING:
    from mlflow import MlflowClient

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a hospital's runs are nobody else's business
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # no model of ours needs it
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """The config group `tracking`.

    Args:
        uri: of the MLflow store; null takes MLFLOW_TRACKING_URI, else `mlflow.db` in `home`.
        experiment_name: the experiment that holds the run; made when missing.
        run_name: shown in the MLflow UI; null lets MLflow invent one.
        system_metrics: sample processor, memory and GPU while training.
    """

    uri: str | None
    experiment_name: str
    run_name: str | None
    system_metrics: bool


@dataclass(frozen=True)
class Store:
    """An MLflow store that is known to work, and one experiment in it."""

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


def masked(uri: str) -> str:
    """Hide the password of a URI."""
    return re.sub(r"(://[^:/@]+):[^@/]+@", r"\1:***@", uri)


def open_store(settings: TrackingSettings, *, home: Path) -> Store:
    """Connect, creating database and experiment where they are missing, one process at a time.

    Raises:
        InputError: the store is damaged, of another version, or the experiment was deleted.
    """
    uri = resolve_uri(settings.uri, home)
    home.mkdir(parents=True, exist_ok=True)
    _require_database(uri)
    with FileLock(home / ".store.lock"):
        if uri.startswith("sqlite:///"):
            follow(Path(uri.removeprefix("sqlite:///")))
        experiment_id = ensure_experiment(uri, settings.experiment_name, home)
    log.info("tracking to %s, experiment %s", masked(uri), settings.experiment_name)
    return Store(uri, experiment_id, settings.experiment_name, home.resolve())


def open_existing(settings: TrackingSettings, *, home: Path) -> Store:
    """Connect to look at what is there; makes neither a database nor an experiment.

    Raises:
        InputError: there is no such database or experiment.
    """
    store = open_database(settings, home=home)
    found = store.client.get_experiment_by_name(settings.experiment_name)
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


@lru_cache(maxsize=4)
def mlflow_client(uri: str) -> "MlflowClient":
    """Make MLflow's client once for each store."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
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


def _is_sqlite(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def ensure_experiment(uri: str, name: str, home: Path) -> str:
    """Give the id of an experiment, making it where it is missing; the caller holds a lock.

    Raises:
        InputError: the store does not answer, or the experiment was deleted.
    """
    from mlflow.exceptions import MlflowException

    try:
        client = mlflow_client(uri)
        found = client.get_experiment_by_name(name)
        if found is None:
            return client.create_experiment(name, artifact_location=_artifact_location(uri, name, home))
    except (MlflowException, OSError) as error:
        raise InputError(f"tracking.uri={masked(uri)}: the store does not answer: {masked(str(error))}") from error
    if found.lifecycle_stage != "active":
        raise InputError(
            f"tracking.experiment_name={name}: this experiment was deleted; bring it back with "
            f"`mlflow experiments restore -x {found.experiment_id}` or choose another name"
        )
    return str(found.experiment_id)


def _artifact_location(uri: str, name: str, home: Path) -> str | None:
    """Keep the artifacts of a local store beside it; a server knows its own place."""
    if not uri.startswith("sqlite:///"):
        return None
    folder = re.sub(r"[^\w.-]+", "_", name).strip(".") or "experiment"
    return (home.resolve() / "artifacts" / folder).as_uri()
