"""What a journal holds, sent to MLflow in such a way that sending it twice changes nothing."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from rich.console import Console
from rich.progress import track

from xray_pneumonia.tracking.environment import patience
from xray_pneumonia.tracking.journal import Entry, Journal
from xray_pneumonia.tracking.store import Store, ensure_experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_PARAMS = 100  # of one request, MLflow's limit
MAX_METRICS = 1000  # the same
UPLOAD_TIMEOUT = 60  # seconds without an answer while a file is sent; other requests wait for less
TOKEN = "journal"  # the tag by which a run is found again whose id was never heard of
log = logging.getLogger(__name__)
SendModel = Callable[[str, Path, Mapping[str, int]], None]


class Unverified(Exception):
    """An artifact in the store is not what was sent, or cannot be read back."""


class Delivery:
    """Sends entries of one journal.

    Args:
        store: where to.
        journal: of the run.
        staged: the folder of its artifacts on this machine.
        send_model: logs the bundle in a folder to the MLflow run of an id.
        moved: called after each request, so that slow can be told from stuck.
    """

    def __init__(
        self, store: Store, journal: Journal, *, staged: Path, send_model: SendModel, moved: Callable[[], None]
    ) -> None:
        self._store, self._journal, self._staged = store, journal, staged
        self._send_model, self._moved = send_model, moved

    @property
    def _client(self) -> "MlflowClient":
        return self._store.client

    @cached_property
    def experiment_id(self) -> str:
        """The experiment, made where it is missing."""
        if self._store.experiment_id:
            return self._store.experiment_id
        with FileLock(self._store.home / ".store.lock"):
            return ensure_experiment(self._store.uri, self._store.experiment_name, self._store.home)

    def run_id(self) -> str:
        """Give the id of the run in MLflow, making the run where MLflow has none."""
        known = self._journal.identity
        if known is None:
            head = next(iter(self._journal.entries())).value
            known = self._found() or self._created(head)
            self._journal.identify(known)
        return known

    def _found(self) -> str | None:
        """Find the run whose making was answered by silence, or whose maker was killed."""
        runs = self._client.search_runs([self.experiment_id], f"tags.{TOKEN} = '{self._journal.run_id}'")
        return runs[0].info.run_id if runs else None

    def _created(self, head: Mapping[str, Any]) -> str:
        made = self._client.create_run(
            self.experiment_id, start_time=head["start"], run_name=head["name"], tags=head["tags"]
        )
        return str(made.info.run_id)

    def send(self, entries: list[Entry], *, unsure: bool) -> Iterator[int]:
        """Send entries in order; yields how far the store has them for certain, in bytes.

        Args:
            entries: of the journal.
            unsure: the store may have some of them already.
        """
        for what, run in groupby(entries, lambda entry: entry.what):
            group = list(run)
            size = MAX_METRICS // 40 if what == "metrics" else 1  # an entry holds a few dozen
            for start in range(0, len(group), size):
                self._send(what, group[start : start + size], unsure=unsure)
                self._moved()
                yield group[min(start + size, len(group)) - 1].end

    def _send(self, what: str, entries: list[Entry], *, unsure: bool) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._handlers[what](self.run_id(), [entry.value for entry in entries], unsure)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE" or self._deleted():
                raise
            if len(entries) > 1:
                for entry in entries:
                    self._send(what, [entry], unsure=True)
                return
            log.warning("run %s: the store refuses its %s for ever: %s", self._journal.run_id, what, error)
            self._journal.refuse(entries[0], str(error))

    @cached_property
    def _handlers(self) -> dict[str, Callable[[str, list[Any], bool], None]]:
        return {
            "run": lambda *_: None,  # `run_id` has seen to it
            "params": self._params,
            "tags": self._tags,
            "metrics": self._metrics,
            "dataset": self._dataset,
            "model": self._model,
            "artifacts": self._artifacts,
            "resume": self._resume,
            "end": self._end,
        }

    def _deleted(self) -> bool:
        return bool(self._client.get_run(self.run_id()).info.lifecycle_stage != "active")

    def _params(self, run_id: str, values: list[dict[str, str]], _: bool) -> None:
        from mlflow.entities import Param

        params = [Param(key, text) for value in values for key, text in value.items()]
        for start in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(run_id, params=params[start : start + MAX_PARAMS])

    def _tags(self, run_id: str, values: list[dict[str, str]], _: bool) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(key, text) for value in values for key, text in value.items()]
        for start in range(0, len(tags), MAX_PARAMS):
            self._client.log_batch(run_id, tags=tags[start : start + MAX_PARAMS])

    def _metrics(self, run_id: str, values: list[list[list[Any]]], unsure: bool) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(*one) for value in values for one in value]
        if unsure:
            there = self._there(run_id, {metric.key for metric in metrics})
            metrics = [metric for metric in metrics if (metric.key, metric.step, metric.timestamp) not in there]
        for start in range(0, len(metrics), MAX_METRICS):
            self._client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS])

    def _there(self, run_id: str, names: set[str]) -> set[tuple[str, int, int]]:
        return {
            (name, metric.step, metric.timestamp)
            for name in names
            for metric in self._client.get_metric_history(run_id, name)
        }

    def _dataset(self, run_id: str, values: list[dict[str, str]], _: bool) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        for value in values:
            dataset = Dataset(value["name"], value["digest"], "local", value["source"])
            self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", value["stage"])])])

    def _model(self, run_id: str, values: list[dict[str, int]], unsure: bool) -> None:
        """Log the bundle, unless MLflow has it whole; what a killed process left half done is removed."""
        folder = self._journal.folder / "model"
        if unsure and self._has_model(run_id, folder):
            return
        with patience(UPLOAD_TIMEOUT):
            self._send_model(run_id, folder, values[-1])
            self._verify_model(run_id, folder)

    def _has_model(self, run_id: str, folder: Path) -> bool:
        from mlflow.entities import RunTag

        for model in self._client.search_logged_models([self.experiment_id], f"source_run_id = '{run_id}'"):
            if str(model.status) == "READY":
                self._client.log_batch(run_id, tags=[RunTag("model_id", model.model_id)])
                try:
                    self._verify_model(run_id, folder)
                    return True
                except Unverified:
                    pass
            self._client.delete_logged_model(model.model_id)
        return False

    def _verify_model(self, run_id: str, folder: Path) -> None:
        from mlflow.artifacts import download_artifacts

        model_id = self._client.get_run(run_id).data.tags["model_id"]
        place = self._client.get_logged_model(model_id).artifact_location
        with TemporaryDirectory() as scratch:
            fetched = Path(download_artifacts(artifact_uri=place, dst_path=scratch, tracking_uri=self._store.uri))
            there = {digest(path) for path in fetched.rglob("*") if path.is_file()}
        lacking = [path.name for path in folder.rglob("*") if path.is_file() and digest(path) not in there]
        if lacking:
            raise Unverified(f"the model in the store lacks {', '.join(sorted(lacking))}")

    def _artifacts(self, run_id: str, values: list[dict[str, list[Any]]], unsure: bool) -> None:
        """Upload each file and read it back; the run is not FINISHED before all are there, byte for byte."""
        if self._superseded(values[-1]):
            return
        with patience(UPLOAD_TIMEOUT):
            for name, (_, sha256) in values[-1].items():
                if not (unsure and self._fetched_digest(run_id, name) == sha256):
                    folder = str(Path(name).parent)
                    self._client.log_artifact(run_id, str(self._staged / name), None if folder == "." else folder)
                    if self._fetched_digest(run_id, name) != sha256:
                        raise Unverified(f"{name} in the store is not what was sent")
                self._moved()

    def _superseded(self, files: dict[str, list[Any]]) -> bool:
        """Tell whether the run went on since, so that its files are others now, or will be named again."""
        later = [entry for entry in self._journal.entries() if entry.what in {"artifacts", "resume"}]
        return bool(later[-1].value != files)

    def _fetched_digest(self, run_id: str, name: str) -> str:
        with TemporaryDirectory() as scratch:
            try:
                return digest(Path(self._client.download_artifacts(run_id, name, scratch)))
            except Exception as error:  # each kind of store has its own for what is not there
                log.debug("%s: %s", name, error)
                return ""

    def _resume(self, run_id: str, _: list[Any], __: bool) -> None:
        self._client.update_run(run_id, status="RUNNING")
        if "reason" in self._client.get_run(run_id).data.tags:
            self._client.delete_tag(run_id, "reason")

    def _end(self, run_id: str, values: list[dict[str, Any]], _: bool) -> None:
        self._client.set_terminated(run_id, values[-1]["status"], end_time=values[-1]["time"])


def inventory(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and hash of each file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    quiet = not Console(stderr=True).is_terminal
    listed = track(files, "Hashing", console=Console(stderr=True), disable=quiet, transient=True)
    return {str(path.relative_to(folder)): (path.stat().st_size, digest(path)) for path in listed}


def digest(path: Path) -> str:
    """Hash a file: 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
