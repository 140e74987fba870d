"""Records one run, from its first tag to its last artifact; its status in MLflow is never better than the truth."""

import contextlib
import hashlib
import logging
import shutil
import traceback
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from xray_pneumonia.errors import Busy, Stopped
from xray_pneumonia.masking import masked
from xray_pneumonia.tracking.locations import STAGED, artifact_folder
from xray_pneumonia.tracking.process import identity_tags, now
from xray_pneumonia.tracking.provenance import Provenance, source_tags
from xray_pneumonia.tracking.recovery import copy_back
from xray_pneumonia.tracking.replay import Replay
from xray_pneumonia.tracking.server import see_it
from xray_pneumonia.tracking.spool import FOLDER, Spool, moved_path
from xray_pneumonia.tracking.store import Store
from xray_pneumonia.tracking.store_errors import StoreUnavailable, first_line
from xray_pneumonia.tracking.stored_runs import OFFLINE_ID, STATE, find_run
from xray_pneumonia.tracking.sync import Sender, closing_entries
from xray_pneumonia.tracking.system_metrics import SystemMetrics

MAX_VALUE = 6000  # characters of a parameter, MLflow's limit
NOTHING: Mapping[str, str] = MappingProxyType({})
SETTLE = 2.0  # seconds that whoever writes tags waits for a healthy store
log = logging.getLogger(__name__)


@dataclass
class Run:
    """A run. Everything written below `folder` is an artifact of it.

    In a local store `folder` is the artifact folder itself, so nothing is ever copied; for a server it is
    a staging folder whose files are sent when the run ends. All that is logged goes to the spool first and is sent
    from there by a thread, so that no store can stop or slow a training.

    `run_id` is MLflow's, or this machine's own where the run began while the store was unavailable; MLflow's run
    then carries it as the tag `journal`.
    """

    store: Store
    run_id: str
    name: str
    started: int  # milliseconds since 1970
    folder: Path
    spool: Spool
    tags: dict[str, str]
    logged_before: Mapping[tuple[str, int], float] = field(default_factory=dict)  # (metric, step) of earlier processes
    sender: Sender | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the sender behind: other processes append to the spool, this one sends."""
        return {**self.__dict__, "sender": None}

    @property
    def mlflow_id(self) -> str | None:
        """The run's id in MLflow; None while MLflow knows no such run."""
        return self.spool.mlflow_id

    @property
    def staged(self) -> bool:
        """Whether its files are sent when it ends, since their place is not on this machine."""
        return self.folder == self.store.home / STAGED / self.run_id

    def path(self, name: str) -> Path:
        """Name an artifact, making its folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def see_it(self) -> str:
        """The address of the run, or the command that shows it."""
        return see_it(self.store, [self.mlflow_id or self.run_id])

    def _log(self, *entries: tuple[str, Any], settle: float = 0.0) -> None:
        try:
            self.spool.append(*entries)
        except OSError as error:
            log.warning("run %s: the spool takes nothing: %s; tried again with the next entry", self.run_id, error)
        if self.sender is not None:
            self.sender.settle(settle) if settle else self.sender.wake()

    def log_config(self, text: str) -> None:
        """Keep the resolved config, byte for byte, and its hash as a tag."""
        self.path("config.yaml").write_text(text, encoding="utf-8")
        self.set_tags({"config_sha256": hashlib.sha256(text.encode()).hexdigest()})

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log every leaf of the config."""
        self._log(("params", {key: logged(value) for key, value in params.items()}), settle=SETTLE)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags in one request."""
        texts = {key: masked(str(value)) for key, value in tags.items()}
        self.tags |= texts
        self._log(("tags", texts), settle=SETTLE)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log metrics, on the disk when this returns; what an earlier process logged for a step stays as it was."""
        when = now()
        new = [[key, float(n), when, step] for key, n in metrics.items() if (key, step) not in self.logged_before]
        if new:
            self._log(("metrics", new))

    def log_dataset(
        self, *, name: str, digest: str, source: str, stage: str, described: Mapping[str, str] = NOTHING
    ) -> None:
        """Name the data of the run as an MLflow dataset input; `schema` and `profile`, in JSON, describe them."""
        facts = {"name": name, "digest": digest[:36], "source": source, "stage": stage}
        self._log(("dataset", {**facts, **described}), settle=SETTLE)

    def log_provenance(self, provenance: Provenance) -> None:
        """Log commit, uncommitted changes, versions and machine."""
        self.path("environment.json").write_text(provenance.environment, encoding="utf-8")
        if provenance.diff:
            self.path("git.diff").write_text(provenance.diff, encoding="utf-8")
        self.set_tags(provenance.tags)

    def log_model(self, folder: Path, *, epoch: int, loader_module: str) -> None:
        """Keep a bundle in the spool and have it logged as an MLflow model; see `registry.log_model`."""
        shutil.copytree(folder, self.spool.folder / "model", dirs_exist_ok=True)
        self._log(("model", {"epoch": epoch, "loader_module": loader_module}))

    def metric_history(self, names: list[str]) -> dict[str, list[tuple[int, float]]]:
        """Read the (epoch, value) pairs back that this and earlier processes of an open run logged."""
        known = {**self.logged_before, **_metrics(self.spool)}
        return {name: sorted((step, value) for (key, step), value in known.items() if key == name) for name in names}

    def close(self, status: str, reason: str) -> bool:
        """Log how the run ended, wait until it is sent, and tell whether the store has everything, verified."""
        pruned = self.tags.get(STATE) == "pruned"
        # Written at once: if this process is killed while files are sent, the run has ended all the same.
        self._log(*closing_entries(self.store, self.spool, status, masked(reason)[:MAX_VALUE], pruned=pruned))
        done = self.sender is None or self.sender.finish()
        if self.mlflow_id and self.mlflow_id != self.run_id:
            log.warning("run %s: in MLflow it is %s", self.run_id, self.mlflow_id)
        if not done:
            kept = sum(1 for _ in self.spool.entries(self.spool.sent)) + self.spool.refused
            log.warning(
                "run %s: unsynced (%s): %d entries are kept in %s; send them with `xray doctor sync`",
                *(self.run_id, self.sender.problem if self.sender else "", kept, self.spool.folder),
            )
        return done


def logged(value: object) -> str:
    """Write the value of a parameter as it is logged."""
    return masked(str(value))[:MAX_VALUE]


def _metrics(spool: Spool) -> dict[tuple[str, int], float]:
    groups = (entry.value for entry in spool.entries() if entry.what == "metrics")
    return {(key, step): value for group in groups for key, value, _, step in group}


@contextlib.contextmanager
def start_run(
    store: Store, *, name: str | None, tags: Mapping[str, str], system_metrics: bool, run_id: str | None = None
) -> Iterator[Run]:
    """Open a run, or resume the one that `run_id` names, and close it with its true status.

    FINISHED after the block; KILLED when a signal or Ctrl-C ended it; FAILED with the tag `reason` otherwise.

    Raises:
        StoreUnavailable: a run is to be resumed that only the store knows, which does not answer.
        Busy: another process has this run open.
    """
    run = _create(store, name, tags) if run_id is None else _resume(store, run_id)
    run.sender = Sender(run.spool, Replay(store, run.spool), unsure=run_id is not None)
    run.sender.settle(SETTLE)
    monitor = SystemMetrics(run.log_metrics, since=run.started) if system_metrics else None
    status, reason = "FINISHED", ""
    try:
        yield run
    except (KeyboardInterrupt, Stopped, SystemExit) as error:
        status, reason = "KILLED", f"{type(error).__name__}: {error}"
        raise
    except BaseException as error:
        status, reason = "FAILED", f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):  # a full disk is reason enough
            run.path("traceback.txt").write_text(masked(traceback.format_exc()), encoding="utf-8")
        raise
    finally:
        if monitor is not None:
            monitor.finish()
        run.close(status, reason)


def _create(store: Store, name: str | None, tags: Mapping[str, str]) -> Run:
    """Create a run in MLflow, or on this machine alone where MLflow is unavailable."""
    offline_id, started = uuid.uuid4().hex, now()
    known = {**source_tags(tags.get("verb", "")), **tags, **identity_tags(), STATE: "running", OFFLINE_ID: offline_id}
    mlflow_id, uri = None, None
    if store.experiment_id:
        try:
            made = store.client.create_run(store.experiment_id, start_time=started, run_name=name, tags=known)
            mlflow_id, uri, name = made.info.run_id, made.info.artifact_uri, made.info.run_name
        except Exception as error:  # whatever a store does, it must not end a training
            log.warning("the store cannot create a run (%s); it is kept here until it can", first_line(error))
    run_id = mlflow_id or offline_id
    spool = Spool(store.home / FOLDER / run_id)
    spool.acquire()
    run = Run(store, run_id, name or run_id[:8], started, artifact_folder(store.home, run_id, uri), spool, known)
    _write_header(run, mlflow_id)
    return run


def _resume(store: Store, run_id: str) -> Run:
    """Take up a run that was left, as the store describes it, or else as its spool does."""
    spool = Spool(store.home / FOLDER / run_id)
    if not spool.acquire():
        raise Busy(f"run_id={run_id}: a living process is at this run; wait for it")
    header = spool.header
    try:
        found = find_run(store, spool.mlflow_id or run_id)
    except Exception as error:
        if header is None:
            spool.remove()
            message = f"run_id={run_id}: {masked(store.uri)} cannot be asked: {first_line(error)}"
            raise StoreUnavailable(message) from error
        uri = moved_path(Path(header["folder"]), header, store.home).as_uri()
        name, started, tags = header["name"], header["start"], header["tags"]
    else:
        uri = found.info.artifact_uri
        name, started, tags = found.info.run_name or run_id[:8], found.info.start_time, found.data.tags
    new = {**identity_tags(), STATE: "running", "resumed": str(int(tags.get("resumed", 0)) + 1)}
    tags = {**tags, **new}
    run = Run(store, run_id, name, started, artifact_folder(store.home, run_id, uri), spool, tags)
    if header is None:
        _write_header(run, found.info.run_id)
        copy_back(store, spool, found)
    (run.folder / "traceback.txt").unlink(missing_ok=True)
    spool.append(("resume", None), ("tags", new))
    run.logged_before = _logged_before(run)
    return run


def _logged_before(run: Run) -> dict[tuple[str, int], float]:
    """Read the metrics that earlier processes of a run logged, from the store and its spool."""
    known: dict[tuple[str, int], float] = {}
    with contextlib.suppress(Exception):  # unavailable: then the spool has all that is new
        run_id, client = run.mlflow_id or run.run_id, run.store.client
        for key in client.get_run(run_id).data.metrics:
            if not key.startswith("system/"):
                known |= {(key, one.step): one.value for one in client.get_metric_history(run_id, key)}
    return {**known, **_metrics(run.spool)}


def _write_header(run: Run, mlflow_id: str | None) -> None:
    header = {
        "name": run.name,
        "start": run.started,
        "tags": run.tags,
        "uri": masked(run.store.uri),
        "experiment": run.store.experiment_name,
        "home": str(run.store.home),
        "folder": str(run.folder),
        "staged": run.staged,
    }
    run.spool.append(("run", header))
    if mlflow_id:
        run.spool.identify(mlflow_id)


def run_folder(store: Store, run_id: str) -> Path:
    """Name the folder in which a run keeps its files on this machine."""
    staged = store.home / STAGED / run_id
    return staged if staged.is_dir() else artifact_folder(store.home, run_id, find_run(store, run_id).info.artifact_uri)
