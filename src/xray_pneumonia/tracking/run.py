"""One run in MLflow, from its first tag to its last artifact; its status tells the truth."""

import contextlib
import hashlib
import logging
import os
import platform
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from xray_pneumonia.errors import Stopped
from xray_pneumonia.tracking.provenance import Provenance
from xray_pneumonia.tracking.signature import signature
from xray_pneumonia.tracking.store import Store

MAX_PARAMS = 100  # of one request, MLflow's limit
MAX_VALUE = 6000  # characters of a parameter, MLflow's limit
log = logging.getLogger(__name__)


@dataclass
class Run:
    """A run. Everything written below `folder` is an artifact of it.

    In a local store `folder` is the artifact folder itself, so nothing is ever copied; for a server it is
    a staging folder that `upload` sends.
    """

    store: Store
    run_id: str
    folder: Path
    staged: bool
    _unsent: list[tuple[str, float, int, int]] = field(default_factory=list)
    _known: set[tuple[str, int]] = field(default_factory=set)  # metrics and steps that an earlier process sent

    def path(self, name: str) -> Path:
        """Name an artifact, making its folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def log_config(self, text: str) -> None:
        """Keep the resolved config, byte for byte, and its hash as a tag."""
        self.path("config.yaml").write_text(text, encoding="utf-8")
        self.set_tags({"config_sha256": hashlib.sha256(text.encode()).hexdigest()})

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log every leaf of the config."""
        from mlflow.entities import Param

        entries = [Param(key, str(value)[:MAX_VALUE]) for key, value in params.items()]
        for start in range(0, len(entries), MAX_PARAMS):
            self.store.client.log_batch(self.run_id, params=entries[start : start + MAX_PARAMS])

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags in one request."""
        from mlflow.entities import RunTag

        self.store.client.log_batch(self.run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Send metrics in one batch; what cannot be sent is kept and tried again with the next batch."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = {key: value for key, value in metrics.items() if (key, step) not in self._known}
        self._unsent += [(key, float(value), now, step) for key, value in new.items()]
        if not self._unsent:
            return
        try:
            self.store.client.log_batch(self.run_id, metrics=[Metric(*entry) for entry in self._unsent])
        except Exception as error:  # whatever a store does, it must not end a training
            log.warning("%d metrics could not be sent yet: %s", len(self._unsent), error)
        else:
            self._unsent.clear()

    def log_dataset(self, *, name: str, digest: str, source: str, stage: str) -> None:
        """Name the data of the run as an MLflow dataset input."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, digest[:36], "local", source)
        self.store.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", stage)])])

    def log_provenance(self, provenance: Provenance) -> None:
        """Log commit, uncommitted changes, versions and machine."""
        self.path("environment.json").write_text(provenance.environment, encoding="utf-8")
        if provenance.diff:
            self.path("git.diff").write_text(provenance.diff, encoding="utf-8")
        self.set_tags(provenance.tags)

    def log_model(self, folder: Path, *, epoch: int) -> None:
        """Log a bundle as an MLflow model with a signature; nothing in it is pickled.

        Args:
            folder: that holds the bundle.
            epoch: whose weights it holds; MLflow copies that epoch's metrics to the model.
        """
        import mlflow.pyfunc
        from mlflow.models import Model

        made = self.store.client.create_logged_model(self.store.experiment_id, name="model", source_run_id=self.run_id)
        with lend_uri(self.store.uri):
            Model.log(
                artifact_path=None,
                flavor=mlflow.pyfunc,
                run_id=self.run_id,
                model_id=made.model_id,
                step=epoch,
                loader_module="xray_pneumonia.workflows.serve",
                data_path=str(folder),
                signature=signature(),
                pip_requirements=["xray-pneumonia"],
            )
        self.set_tags({"model_id": made.model_id})

    def metric_history(self, names: list[str]) -> dict[str, list[tuple[int, float]]]:
        """Read (epoch, value) pairs back from the store."""
        history = {name: self.store.client.get_metric_history(self.run_id, name) for name in names}
        return {name: sorted((metric.step, metric.value) for metric in metrics) for name, metrics in history.items()}

    def upload(self) -> None:
        """Send the staged artifacts to a store that is not this machine's."""
        if self.staged:
            self.store.client.log_artifacts(self.run_id, str(self.folder))


@contextlib.contextmanager
def start_run(
    store: Store, *, name: str | None, tags: Mapping[str, str], system_metrics: bool, run_id: str | None = None
) -> Iterator[Run]:
    """Open a run, or go on with the one that `run_id` names, and close it with a status that is true.

    FINISHED after the block; KILLED when a signal or Ctrl-C ended it; FAILED with the tag `reason` otherwise. A run
    that goes on takes no metric twice: what is in the store for a step stays.
    """
    if run_id is None:
        made = store.client.create_run(store.experiment_id, run_name=name, tags={**tags, **who()})
        run = Run(store, made.info.run_id, *_artifact_folder(store, made.info.run_id, made.info.artifact_uri))
    else:
        run = _reopened(store, run_id)
    monitor = _monitor(run, resume=run_id is not None) if system_metrics else None
    status, reason = "FINISHED", ""
    try:
        yield run
    except (KeyboardInterrupt, Stopped, SystemExit) as error:
        status, reason = "KILLED", f"{type(error).__name__}: {error}"
        raise
    except BaseException as error:
        status, reason = "FAILED", f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):  # of a full disk, which is why it failed
            run.path("traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        raise
    finally:
        if monitor is not None:
            monitor.finish()
        _close(run, status, reason)


def run_folder(store: Store, run_id: str) -> Path:
    """Name the folder in which a run keeps its files on this machine."""
    return _artifact_folder(store, run_id, store.client.get_run(run_id).info.artifact_uri)[0]


def who() -> dict[str, str]:
    """Name this process, as tags."""
    born = psutil.Process().create_time()
    return {"host": platform.node(), "pid": str(os.getpid()), "born": f"{born:.2f}"}


def _reopened(store: Store, run_id: str) -> Run:
    """Take over a run whose process is gone, and learn what it has sent."""
    made = store.client.get_run(run_id)
    store.client.update_run(run_id, status="RUNNING")
    run = Run(store, run_id, *_artifact_folder(store, run_id, made.info.artifact_uri))
    (run.folder / "traceback.txt").unlink(missing_ok=True)
    run.set_tags({**who(), "resumed": int(made.data.tags.get("resumed", 0)) + 1})
    if "reason" in made.data.tags:
        store.client.delete_tag(run_id, "reason")
    for key in made.data.metrics:
        if not key.startswith("system/"):  # whose monitor counts on by itself
            run._known |= {(key, entry.step) for entry in store.client.get_metric_history(run_id, key)}
    return run


def _close(run: Run, status: str, reason: str) -> None:
    try:
        run.upload()
        if reason:
            run.set_tags({"reason": reason[:MAX_VALUE]})
        run.store.client.set_terminated(run.run_id, status)
    except Exception as error:
        if status == "FINISHED":
            raise
        log.error("run %s could not be marked %s: %s", run.run_id, status, error)


def _artifact_folder(store: Store, run_id: str, uri: str) -> tuple[Path, bool]:
    from mlflow.utils.file_utils import local_file_uri_to_path

    local = uri.startswith(("file:", "/"))
    folder = Path(local_file_uri_to_path(uri)) if local else store.home / "staged" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    return folder, not local


def _monitor(run: Run, *, resume: bool) -> Any:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run.run_id, sampling_interval=2, resume_logging=resume, tracking_uri=run.store.uri)
    monitor.start()
    return monitor


@contextlib.contextmanager
def lend_uri(uri: str) -> Iterator[None]:
    """Lend MLflow's fluent functions our store; they know no client.

    MLflow writes the URI into the environment too, where the next run of this process would find it.
    """
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri("")
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
