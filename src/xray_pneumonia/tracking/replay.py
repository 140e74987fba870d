"""Replays the entries of a spool to MLflow, so that sending them twice changes nothing."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import track

from xray_pneumonia.masking import masked
from xray_pneumonia.tracking.locations import STAGED, creation_lock
from xray_pneumonia.tracking.recovery import lacks_entries, lost_run, require_not_deleted
from xray_pneumonia.tracking.registry import Unverified, has_model, log_model
from xray_pneumonia.tracking.spool import Entry, Spool, moved_path
from xray_pneumonia.tracking.store import Store, ensure_experiment
from xray_pneumonia.tracking.store_errors import refuses_value
from xray_pneumonia.tracking.stored_runs import OFFLINE_ID
from xray_pneumonia.whole_files import file_sha256

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_PARAMS = 100  # of one request, MLflow's limit
MAX_METRICS = 1000  # the same
AT_ONCE = 200  # entries read from a spool at a time
UPLOAD_TIMEOUT = 60  # seconds without an answer while a file is sent; other requests wait for less
T = TypeVar("T")
log = logging.getLogger(__name__)


class Replay:
    """Sends the entries of one spool in such a way that sending them twice changes nothing.

    `loader_module` is that of models that version 0.1.0 spooled without naming it.
    """

    def __init__(self, store: Store, spool: Spool, *, loader_module: str = "") -> None:
        self._store, self._spool, self._loader_module = store, spool, loader_module
        self._staged = store.home / STAGED / spool.run_id
        self.progressed = time.monotonic()

    @property
    def _client(self) -> "MlflowClient":
        return self._store.client

    def send_heartbeat(self) -> None:
        """Tell the store that this process lives."""
        if self._spool.mlflow_id:
            self._client.set_tag(self._spool.mlflow_id, "heartbeat", str(int(time.time())))

    def send_unsent(self, *, unsure: bool) -> None:
        """Send what the store lacks, in order, and note how far it has it for certain.

        Args:
            unsure: the store may have the first of these entries already.
        """
        try:
            self._send_in_order(unsure=unsure)
        except Exception as error:
            if self._spool.mlflow_id is None or not lost_run(self._store, self._spool.mlflow_id, error):
                raise
            log.warning("run %s: the store lost it; it is made again from %s", self._spool.run_id, self._spool.folder)
            self._spool.forget_store()
            self._store = replace(self._store, experiment_id="")
            self._send_in_order(unsure=True)

    def _send_in_order(self, *, unsure: bool) -> None:
        while entries := list(islice(self._spool.entries(self._spool.sent), AT_ONCE)):
            for what, group in groupby(entries, lambda entry: entry.what):
                # An entry of metrics holds a few dozen.
                for some in _chunks(list(group), MAX_METRICS // 40 if what == "metrics" else 1):
                    self._send(what, some, unsure=unsure)
                    self.progressed = time.monotonic()
                    self._spool.mark_sent(some[-1].end)
            unsure = False

    def _send(self, what: str, entries: list[Entry], *, unsure: bool) -> None:
        run_id = self._run_id()
        try:
            self._handlers[what](run_id, [entry.value for entry in entries], unsure)
        except Exception as error:
            if not refuses_value(error):
                raise
            require_not_deleted(self._store, run_id)
            if what == "model":  # without it no run is finished
                raise
            if len(entries) > 1:
                for entry in entries:
                    self._send(what, [entry], unsure=True)
                return
            log.warning("run %s: the store refuses its %s for ever: %s", self._spool.run_id, what, error)
            self._spool.refuse(entries[0], masked(str(error)))

    @cached_property
    def _handlers(self) -> dict[str, Callable[[str, list[Any], bool], None]]:
        return {
            "run": lambda *_: None,  # `_run_id` has created it
            "params": self._params,
            "tags": self._tags,
            "metrics": self._metrics,
            "dataset": self._dataset,
            "model": self._model,
            "artifacts": self._artifacts,
            "resume": self._resume,
            "end": self._end,
        }

    def _run_id(self) -> str:
        """Return the id of the run in MLflow, creating the run where MLflow has none."""
        if self._spool.mlflow_id is None:
            # The request that created it may have been answered by silence, or its sender killed.
            found = self._client.search_runs([self._experiment_id()], f"tags.{OFFLINE_ID} = '{self._spool.run_id}'")
            self._spool.identify(found[0].info.run_id if found else self._created())
        return str(self._spool.mlflow_id)

    def _experiment_id(self) -> str:
        if self._store.experiment_id:
            return self._store.experiment_id
        with creation_lock(self._store.uri, self._store.home):
            return ensure_experiment(self._store.uri, self._store.experiment_name, self._store.home)

    def _created(self) -> str:
        header = self._spool.header or {}
        tags = {**header["tags"], OFFLINE_ID: self._spool.run_id}  # under which it is found, should MLflow's id change
        run = self._client.create_run(self._experiment_id(), header["start"], tags, header["name"])
        return str(run.info.run_id)

    def _params(self, run_id: str, values: list[dict[str, str]], _: bool) -> None:
        from mlflow.entities import Param

        for some in _chunks([Param(key, text) for value in values for key, text in value.items()], MAX_PARAMS):
            self._client.log_batch(run_id, params=some)

    def _tags(self, run_id: str, values: list[dict[str, str]], _: bool) -> None:
        from mlflow.entities import RunTag

        for some in _chunks([RunTag(key, text) for value in values for key, text in value.items()], MAX_PARAMS):
            self._client.log_batch(run_id, tags=some)

    def _metrics(self, run_id: str, values: list[list[list[Any]]], unsure: bool) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(*one) for value in values for one in value]
        if unsure:
            histories = [self._client.get_metric_history(run_id, key) for key in {metric.key for metric in metrics}]
            arrived = {(one.key, one.step, one.timestamp) for history in histories for one in history}
            metrics = [metric for metric in metrics if (metric.key, metric.step, metric.timestamp) not in arrived]
        for some in _chunks(metrics, MAX_METRICS):
            self._client.log_batch(run_id, metrics=some)

    def _dataset(self, run_id: str, values: list[dict[str, str]], _: bool) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        for value in values:
            source = json.dumps({"uri": value["source"]})
            facts = value.get("schema"), value.get("profile")  # which version 0.1.0 did not spool
            dataset = Dataset(value["name"], value["digest"], "local", source, *facts)
            self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", value["stage"])])])

    def _model(self, run_id: str, values: list[dict[str, Any]], unsure: bool) -> None:
        folder, value = self._spool.folder / "model", values[-1]
        with _timeout(UPLOAD_TIMEOUT):
            if not (unsure and has_model(self._store, run_id, folder)):
                loader = value.get("loader_module", self._loader_module)
                if not loader:
                    raise Unverified("version 0.1.0 spooled its model; `xray doctor sync` sends it")
                log_model(self._store, run_id, folder, epoch=value["epoch"], loader_module=loader)

    def _artifacts(self, run_id: str, values: list[dict[str, list[Any]]], unsure: bool) -> None:
        if not self._superseded(values[-1]):
            self._upload(run_id, self._staged, values[-1], unsure=unsure)

    def _upload(self, run_id: str, folder: Path, files: Mapping[str, Sequence[Any]], *, unsure: bool) -> None:
        """Upload each file and read it back; the run is not FINISHED before all are there, byte for byte."""
        with _timeout(UPLOAD_TIMEOUT):
            for name, (_, sha256) in files.items():
                if not (unsure and self._fetched_sha256(run_id, name) == sha256):
                    below = str(Path(name).parent)
                    self._client.log_artifact(run_id, str(folder / name), None if below == "." else below)
                    if self._fetched_sha256(run_id, name) != sha256:
                        raise Unverified(f"{name} in the store is not what was sent")
                self.progressed = time.monotonic()

    def _superseded(self, files: dict[str, list[Any]]) -> bool:
        """Tell whether the run was resumed since, so that its files are others now, or will be listed again."""
        later = [entry for entry in self._spool.entries() if entry.what in {"artifacts", "resume"}]
        return bool(later[-1].value != files)

    def _fetched_sha256(self, run_id: str, name: str) -> str:
        with TemporaryDirectory() as scratch:
            try:
                return file_sha256(Path(self._client.download_artifacts(run_id, name, scratch)))
            except Exception as error:  # each kind of store has its own for a missing file
                log.debug("%s: %s", name, error)
                return ""

    def _resume(self, run_id: str, _: list[Any], __: bool) -> None:
        self._client.update_run(run_id, status="RUNNING")
        if "reason" in self._client.get_run(run_id).data.tags:
            self._client.delete_tag(run_id, "reason")

    def _end(self, run_id: str, values: list[dict[str, Any]], _: bool) -> None:
        if not self._spool.refused and lacks_entries(
            self._store, self._spool, run_id
        ):  # its database was swapped for an older copy
            log.warning("run %s: the store lost a part of it, which is sent again", self._spool.run_id)
            for entry in [entry for entry in self._spool.entries() if entry.what != "end"]:
                self._send(entry.what, [entry], unsure=True)
            if lacks_entries(self._store, self._spool, run_id):
                raise Unverified("the store does not hold what it was sent")
        header = self._spool.header or {}
        folder = moved_path(Path(header["folder"]), header, self._store.home)
        uri = self._client.get_run(run_id).info.artifact_uri
        if run_id != self._spool.run_id and not header["staged"] and folder.as_uri() != uri:  # it was made again
            self._upload(run_id, folder, inventory(folder), unsure=True)
        self._client.set_terminated(run_id, values[-1]["status"], end_time=values[-1]["time"])


def _chunks(items: list[T], size: int) -> list[list[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


@contextmanager
def _timeout(seconds: int) -> Iterator[None]:
    """Give the store longer for an answer."""
    before = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "0")
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(seconds, int(before)))
    try:
        yield
    finally:
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = before


def inventory(folder: Path) -> dict[str, tuple[int, str]]:
    """Size in bytes and SHA-256 of each file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    quiet = not Console(stderr=True).is_terminal
    listed = track(files, "Hashing", console=Console(stderr=True), disable=quiet, transient=True)
    return {str(path.relative_to(folder)): (path.stat().st_size, file_sha256(path)) for path in listed}
