"""Runs read back from the store: what a later command may rely on, checked before it does."""

import hashlib
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from xray_pneumonia.errors import InputError
from xray_pneumonia.tracking.beginning import find_run
from xray_pneumonia.tracking.places import inside, local_folder
from xray_pneumonia.tracking.store import Store, masked

RUN_ID = re.compile(r"[0-9a-f]{32}\Z")
CONFIGS = re.compile(r"config.*\.ya?ml\Z", re.IGNORECASE)
MAX_CONFIG = 2**20  # bytes


@dataclass(frozen=True)
class StoredRun:
    """A run with its config proven to be the one it ran with."""

    store: Store
    run_id: str
    name: str
    status: str
    started: int  # milliseconds since 1970
    config: str
    tags: dict[str, str]
    metrics: dict[str, float] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None  # of its artifacts; None where MLflow has to fetch them

    @property
    def when(self) -> str:
        """The day and minute it started, in UTC."""
        return datetime.fromtimestamp(self.started / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")

    def artifact(self, name: str) -> Path:
        """Fetch one artifact (a file or folder).

        Raises:
            InputError: the run has no such artifact.
        """
        if self.folder is not None:
            return inside(self.folder, name, origin=f"run {self.run_id}")
        try:
            return Path(self.store.client.download_artifacts(self.run_id, name))
        except Exception as error:  # each kind of store has its own
            raise InputError(f"run {self.run_id}: has no artifact {name}: {' '.join(str(error).split())}") from error

    def bundle(self) -> Path:
        """Fetch the folder with the model's weights and card.

        Raises:
            InputError: the run logged no model, or it is gone.
        """
        from mlflow.artifacts import download_artifacts

        if "model_id" not in self.tags:
            raise InputError(f"run {self.run_id}: holds no model; train it to its end first")
        try:
            place = self.store.client.get_logged_model(self.tags["model_id"]).artifact_location
            home = self.store.client.get_experiment(self.store.experiment_id).artifact_location
            folder = local_folder(self.store, place, within=home, origin="its model")
            folder = folder or Path(download_artifacts(artifact_uri=place, tracking_uri=self.store.uri))
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
    """Read a finished training run, or any where `unfinished` ones are wanted.

    Raises:
        InputError: there is no such run, it is not finished, or its config or artifacts were altered.
    """
    from mlflow.exceptions import MlflowException

    if not RUN_ID.match(run_id):
        raise InputError(f"run_id={run_id!r}: a run id has 32 hex digits; `xray train` prints it on its last line")
    try:
        run = find_run(store, run_id)
        run_id = run.info.run_id  # another one, where the run began while the store was away
        home = store.client.get_experiment(run.info.experiment_id)
    except MlflowException as error:
        raise InputError(f"run_id={run_id}: there is no such run in {masked(store.uri)}") from error
    if run.info.lifecycle_stage != "active":
        raise InputError(f"run_id={run_id}: was deleted; bring it back in the MLflow UI or choose another")
    if run.info.status != "FINISHED" and not unfinished:
        raise InputError(f"run_id={run_id}: is {run.info.status}, not FINISHED; wait for it or choose another")
    folder = local_folder(store, run.info.artifact_uri, within=home.artifact_location, origin=f"run_id={run_id}")
    place = Store(store.uri, run.info.experiment_id, home.name, store.home)
    stored = StoredRun(
        place,
        run_id,
        run.info.run_name or run_id,
        run.info.status,
        run.info.start_time,
        "",
        dict(run.data.tags),
        dict(run.data.metrics),
        dict(run.data.params),
        folder,
    )
    return replace(stored, config=_config(stored))


def _config(run: StoredRun) -> str:
    """Read the one config of a run, as far as it is the one that its tag names."""
    origin = f"run_id={run.run_id}"
    found = sorted(name for name in _names(run) if CONFIGS.match(name))
    if found != ["config.yaml"]:
        raise InputError(
            f"{origin}: holds {found or 'no config'}, expected config.yaml alone ({masked(run.store.uri)})"
        )
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
