"""Runs read back from the store: what a later command may rely on, checked before it does."""

import hashlib
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xray_pneumonia.errors import InputError
from xray_pneumonia.tracking.store import Store, masked

RUN_ID = re.compile(r"^[0-9a-f]{32}$")


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

    @property
    def when(self) -> str:
        """The day and minute it started, in UTC."""
        return datetime.fromtimestamp(self.started / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")

    def artifact(self, name: str) -> Path:
        """Fetch one artifact (a file or folder).

        Raises:
            InputError: the run has no such artifact.
        """
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
            if not _within(place, home):
                raise InputError(f"its files lie outside of its experiment's ({masked(str(place))})")
            folder = Path(download_artifacts(artifact_uri=place, tracking_uri=self.store.uri))
        except Exception as error:
            raise InputError(
                f"run {self.run_id}: its model cannot be fetched: {' '.join(str(error).split())}"
            ) from error
        found = sorted(folder.glob("data/**/model.json"))
        if len(found) != 1:
            raise InputError(f"run {self.run_id}: its model holds {len(found)} cards, expected one; train it again")
        return found[0].parent


def read_run(store: Store, run_id: str, *, unfinished: bool = False) -> StoredRun:
    """Read a finished training run, or any where `unfinished` ones are wanted.

    Raises:
        InputError: there is no such run, it is not finished, or its config or artifacts were altered.
    """
    from mlflow.exceptions import MlflowException

    if not RUN_ID.match(run_id):
        raise InputError(f"run_id={run_id!r}: a run id has 32 hex digits; `xray train` prints it on its last line")
    try:
        run = store.client.get_run(run_id)
        home = store.client.get_experiment(run.info.experiment_id)
    except MlflowException as error:
        raise InputError(f"run_id={run_id}: there is no such run in {masked(store.uri)}") from error
    if run.info.lifecycle_stage != "active":
        raise InputError(f"run_id={run_id}: was deleted; bring it back in the MLflow UI or choose another")
    if run.info.status != "FINISHED" and not unfinished:
        raise InputError(f"run_id={run_id}: is {run.info.status}, not FINISHED; wait for it or choose another")
    if not _within(run.info.artifact_uri, home.artifact_location):
        raise InputError(
            f"run_id={run_id}: its artifacts lie outside of its experiment's ({masked(str(run.info.artifact_uri))}); "
            "nothing is read from there"
        )
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
    )
    return _with_config(stored)


def _with_config(run: StoredRun) -> StoredRun:
    text = run.artifact("config.yaml").read_bytes().decode("utf-8", "replace")
    if hashlib.sha256(text.encode()).hexdigest() != run.tags.get("config_sha256"):
        raise InputError(
            f"run_id={run.run_id}: config.yaml is not the one this run was started with (its sha256 differs from the "
            "tag config_sha256); an altered run cannot be evaluated"
        )
    values: dict[str, Any] = {name: getattr(run, name) for name in ("name", "status", "started", "tags", "metrics")}
    return StoredRun(run.store, run.run_id, config=text, **values)


def _within(uri: str | None, parent: str | None) -> bool:
    return bool(uri and parent) and str(uri).startswith(str(parent).rstrip("/") + "/") and ".." not in str(uri)
