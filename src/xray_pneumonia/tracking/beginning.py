"""How a run begins: in MLflow, here where MLflow is away, or again where it was left."""

import contextlib
import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xray_pneumonia.errors import Busy
from xray_pneumonia.tracking.journal import FOLDER, Journal
from xray_pneumonia.tracking.process import who
from xray_pneumonia.tracking.spool import TOKEN
from xray_pneumonia.tracking.store import Store, first_line, masked
from xray_pneumonia.tracking.store_errors import StoreAway

STAGED = "staged"  # below the home: the files of runs whose store is not on this machine
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Begun:
    """What is known of a run before it says anything; the fields are those of `run.Run`."""

    run_id: str
    name: str
    started: int
    folder: Path
    staged: bool
    journal: Journal
    tags: dict[str, str]


def begin(store: Store, name: str | None, tags: Mapping[str, str]) -> Begun:
    """Make the run in MLflow, or here where MLflow is away."""
    token, started = uuid.uuid4().hex, int(time.time() * 1000)
    known = {**tags, **who(), TOKEN: token}
    mlflow_id, uri = None, None
    if store.experiment_id:
        try:
            made = store.client.create_run(store.experiment_id, start_time=started, run_name=name, tags=known)
            mlflow_id, uri, name = made.info.run_id, made.info.artifact_uri, made.info.run_name
        except Exception as error:  # whatever a store does, it must not end a training
            log.warning("the store cannot make a run (%s); it is kept here until it can", first_line(error))
    run_id = mlflow_id or token
    journal = Journal(store.home / FOLDER / run_id)
    journal.acquire()
    begun = Begun(run_id, name or run_id[:8], started, *_artifact_folder(store, run_id, uri), journal, known)
    _head(store, begun, mlflow_id)
    return begun


def go_on(store: Store, run_id: str) -> Begun:
    """Go on with a run that was left.

    Raises:
        StoreAway: all that is known of it is in the store, which does not answer.
        Busy: another process is at it.
    """
    journal = Journal(store.home / FOLDER / run_id)
    if not journal.acquire():
        raise Busy(f"run_id={run_id}: a living process is at this run; wait for it")
    fresh = next(journal.entries(), None) is None
    try:
        made = find_run(store, journal.identity or run_id)
    except Exception as error:
        if fresh:
            journal.remove()
            raise StoreAway(f"run_id={run_id}: {masked(store.uri)} cannot be asked: {first_line(error)}") from error
        begun = go_back(store, journal)
    else:
        info, tags = made.info, {**made.data.tags, **who()}
        folder = _artifact_folder(store, run_id, None if _began_here(journal) else info.artifact_uri)
        begun = Begun(run_id, info.run_name or run_id[:8], info.start_time, *folder, journal, tags)
        if fresh:
            _head(store, begun, info.run_id)
    (begun.folder / "traceback.txt").unlink(missing_ok=True)
    journal.append("resume", None)
    journal.append("tags", {**who(), "resumed": str(int(begun.tags.get("resumed", 0)) + 1)})
    return begun


def said_before(store: Store, journal: Journal) -> frozenset[tuple[str, int]]:
    """List what earlier processes of a run said, in the store and in the journal."""
    entries = (entry for entry in journal.entries() if entry.what == "metrics")
    known = {(key, step) for entry in entries for key, _, _, step in entry.value}
    with contextlib.suppress(Exception):  # away: then the journal has all that is new
        run_id = journal.identity or journal.run_id
        for key in store.client.get_run(run_id).data.metrics:
            if not key.startswith("system/"):
                known |= {(key, entry.step) for entry in store.client.get_metric_history(run_id, key)}
    return frozenset(known)


def run_folder(store: Store, run_id: str) -> Path:
    """Name the folder in which a run keeps its files on this machine."""
    uri = None if (store.home / STAGED / run_id).is_dir() else find_run(store, run_id).info.artifact_uri
    return _artifact_folder(store, run_id, uri)[0]


def go_back(store: Store, journal: Journal) -> Begun:
    """Take up a run as its journal describes it, without asking the store."""
    head = next(iter(journal.entries())).value
    uri = None if head["staged"] else Path(head["folder"]).as_uri()
    folder = _artifact_folder(store, journal.run_id, uri)
    return Begun(journal.run_id, head["name"], head["start"], *folder, journal, {**head["tags"], **who()})


def find_run(store: Store, run_id: str) -> Any:
    """Read a run by MLflow's id, or by the one it had here while MLflow was away."""
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        experiments = [one.experiment_id for one in store.client.search_experiments()]
        found = store.client.search_runs(experiments, f"tags.{TOKEN} = '{run_id}'")
        if not found:
            raise
        return found[0]


def _began_here(journal: Journal) -> bool:
    head = next(journal.entries(), None)
    return head is not None and bool(head.value["staged"])


def _head(store: Store, begun: Begun, mlflow_id: str | None) -> None:
    """Begin the journal with all that MLflow needs to make the run."""
    head = {
        "name": begun.name,
        "start": begun.started,
        "tags": begun.tags,
        "uri": masked(store.uri),
        "experiment": store.experiment_name,
        "folder": str(begun.folder),
        "staged": begun.staged,
    }
    begun.journal.append("run", head)
    if mlflow_id:
        begun.journal.identify(mlflow_id)


def _artifact_folder(store: Store, run_id: str, uri: str | None) -> tuple[Path, bool]:
    """Name the folder of a run's files, and tell whether they have to be sent from there."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    if uri is not None and uri.startswith(("file:", "/")):
        folder = Path(local_file_uri_to_path(uri))
        with contextlib.suppress(OSError):  # unwritable: staged like those of a server
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{uuid.uuid4().hex}"
            probe.write_bytes(b"x")
            probe.unlink()
            return folder, False
        log.warning("%s cannot be written; the run's files are kept in %s until it can", folder, store.home / STAGED)
    folder = store.home / STAGED / run_id
    folder.mkdir(parents=True, exist_ok=True)
    return folder, True
