"""One run in MLflow, from its first tag to its last artifact; its status tells the truth."""

import contextlib
import hashlib
import logging
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xray_pneumonia.errors import Stopped
from xray_pneumonia.tracking.beginning import Begun, begin, go_on, said_before
from xray_pneumonia.tracking.environment import tracking_uri
from xray_pneumonia.tracking.journal import Journal
from xray_pneumonia.tracking.outbox import Outbox
from xray_pneumonia.tracking.provenance import Provenance
from xray_pneumonia.tracking.signature import signature
from xray_pneumonia.tracking.spool import Delivery, inventory
from xray_pneumonia.tracking.store import Store
from xray_pneumonia.tracking.system_metrics import SystemMetrics

MAX_VALUE = 6000  # characters of a parameter, MLflow's limit
SETTLE = 2.0  # seconds that whoever writes tags waits for a healthy store
CURE = "xray doctor sync"
log = logging.getLogger(__name__)


@dataclass
class Run:
    """A run. Everything written below `folder` is an artifact of it.

    In a local store `folder` is the artifact folder itself, so nothing is ever copied; for a server it is
    a staging folder whose files are sent when the run ends. All that is logged goes to the journal first and
    from there to the store, so that no store, whatever it does, can stop or slow a training.

    `run_id` is MLflow's, or this machine's own where the run began while the store was away; MLflow's run
    then carries it as the tag `journal`.
    """

    store: Store
    run_id: str
    name: str
    started: int  # milliseconds since 1970
    folder: Path
    staged: bool
    journal: Journal
    resumed: bool
    tags: dict[str, str] = field(default_factory=dict)
    known: frozenset[tuple[str, int]] = frozenset()  # metrics and steps that an earlier process said
    mlflow_id: str | None = None  # known when the run is over
    outbox: Outbox | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the outbox behind: other processes write to the journal, this one sends."""
        return {**self.__dict__, "outbox": None}

    def path(self, name: str) -> Path:
        """Name an artifact, making its folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _say(self, what: str, value: Any, *, settle: float) -> None:
        self._say_all([(what, value)], settle=settle)

    def _say_all(self, entries: list[tuple[str, Any]], *, settle: float) -> None:
        try:
            self.journal.extend(entries)
        except OSError as error:
            log.warning("run %s: the journal takes nothing: %s; tried again with the next entry", self.run_id, error)
        if self.outbox is not None:
            self.outbox.settle(settle) if settle else self.outbox.nudge()

    def log_config(self, text: str) -> None:
        """Keep the resolved config, byte for byte, and its hash as a tag."""
        self.path("config.yaml").write_text(text, encoding="utf-8")
        self.set_tags({"config_sha256": hashlib.sha256(text.encode()).hexdigest()})

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log every leaf of the config."""
        self._say("params", {key: str(value)[:MAX_VALUE] for key, value in params.items()}, settle=SETTLE)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags in one request."""
        texts = {key: str(value) for key, value in tags.items()}
        self.tags |= texts
        self._say("tags", texts, settle=SETTLE)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log metrics; they are on the disk when this returns, and sent beside the training.

        What an earlier process of this run said for a step stays as it was.
        """
        now = int(time.time() * 1000)
        new = [[key, float(value), now, step] for key, value in metrics.items() if (key, step) not in self.known]
        if new:
            self._say("metrics", new, settle=0)

    def log_dataset(self, *, name: str, digest: str, source: str, stage: str) -> None:
        """Name the data of the run as an MLflow dataset input."""
        self._say("dataset", {"name": name, "digest": digest[:36], "source": source, "stage": stage}, settle=SETTLE)

    def log_provenance(self, provenance: Provenance) -> None:
        """Log commit, uncommitted changes, versions and machine."""
        self.path("environment.json").write_text(provenance.environment, encoding="utf-8")
        if provenance.diff:
            self.path("git.diff").write_text(provenance.diff, encoding="utf-8")
        self.set_tags(provenance.tags)

    def log_model(self, folder: Path, *, epoch: int) -> None:
        """Keep a bundle in the journal and have it logged as an MLflow model; see `send_model`."""
        shutil.copytree(folder, self.journal.folder / "model", dirs_exist_ok=True)
        self._say("model", {"epoch": epoch}, settle=0)

    def send_model(self, mlflow_id: str, folder: Path, *, epoch: int) -> None:
        """Log a bundle as an MLflow model with a signature; nothing in it is pickled.

        Args:
            mlflow_id: of the run in MLflow.
            folder: that holds the bundle.
            epoch: whose weights it holds; MLflow copies that epoch's metrics to the model.
        """
        import mlflow.pyfunc
        from mlflow.models import Model

        experiment_id = self.store.client.get_run(mlflow_id).info.experiment_id
        made = self.store.client.create_logged_model(experiment_id, name="model", source_run_id=mlflow_id)
        with tracking_uri(self.store.uri):
            Model.log(
                artifact_path=None,
                flavor=mlflow.pyfunc,
                run_id=mlflow_id,
                model_id=made.model_id,
                step=epoch,
                loader_module="xray_pneumonia.workflows.serve",
                data_path=str(folder),
                signature=signature(),
                pip_requirements=["xray-pneumonia"],
            )
        self.store.client.set_tag(mlflow_id, "model_id", made.model_id)

    def metric_history(self, names: list[str]) -> dict[str, list[tuple[int, float]]]:
        """Read (epoch, value) pairs back: from the journal, and from the store what an earlier process said."""
        wanted: dict[str, dict[int, float]] = {name: {} for name in names}
        for name in names if self.resumed or not self.journal.begun else ():
            with contextlib.suppress(Exception):
                history = self.store.client.get_metric_history(self.journal.identity or self.run_id, name)
                wanted[name] |= {metric.step: metric.value for metric in history}
        for entry in self.journal.entries():
            for key, value, _, step in entry.value if entry.what == "metrics" else ():
                if key in wanted:
                    wanted[key][step] = value
        return {name: sorted(known.items()) for name, known in wanted.items()}

    def close(self, status: str, reason: str) -> bool:
        """Say how the run ended, and have everything sent; what the store does not take is kept.

        Returns:
            Whether the store has everything, verified.
        """
        entries: list[tuple[str, Any]] = [("tags", {"reason": reason[:MAX_VALUE]})] if reason else []
        entries += [("artifacts", inventory(self.folder))] if self.staged else []
        end = ("end", {"status": status, "time": int(time.time() * 1000)})
        self._say_all([*entries, end], settle=0)  # at once: killed while files are sent, it was over all the same
        return self.conclude()

    def conclude(self) -> bool:
        """Wait for the outbox and put the journal away if nothing is left in it."""
        done = self.outbox is None or self.outbox.finish()
        self.mlflow_id, problem = self.journal.identity, self.outbox.problem if self.outbox else ""
        if self.mlflow_id and self.mlflow_id != self.run_id:
            log.warning("run %s: in MLflow it is %s", self.run_id, self.mlflow_id)
        if done and not self.journal.refused:
            self.journal.remove()
            return True
        log.warning(
            "run %s: unsynced (%s): %d entries are kept in %s; send them with `%s`",
            *(self.run_id, problem, self.journal.unsent() + self.journal.refused, self.journal.folder, CURE),
        )
        self.outbox.leave() if self.outbox else self.journal.release()
        return False


@contextlib.contextmanager
def start_run(
    store: Store, *, name: str | None, tags: Mapping[str, str], system_metrics: bool, run_id: str | None = None
) -> Iterator[Run]:
    """Open a run, or go on with the one that `run_id` names, and close it with a status that is true.

    FINISHED after the block; KILLED when a signal or Ctrl-C ended it; FAILED with the tag `reason` otherwise.
    """
    begun = begin(store, name, tags) if run_id is None else go_on(store, run_id)
    run = assume(store, begun, resumed=run_id is not None)
    run.known = said_before(store, begun.journal) if run_id else frozenset()
    if run.outbox is not None:
        run.outbox.settle(SETTLE)
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
            run.path("traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        raise
    finally:
        if monitor is not None:
            monitor.finish()
        run.close(status, reason)


def assume(store: Store, begun: Begun, *, resumed: bool) -> Run:
    """Take a run whose journal's lock is held, and start sending what the journal holds."""
    run = Run(
        store,
        begun.run_id,
        name=begun.name,
        started=begun.started,
        folder=begun.folder,
        staged=begun.staged,
        journal=begun.journal,
        resumed=resumed,
        tags=dict(begun.tags),
    )
    box: list[Outbox] = []
    delivery = Delivery(
        store,
        run.journal,
        staged=run.folder,
        send_model=lambda mlflow_id, folder, facts: run.send_model(mlflow_id, folder, **facts),
        moved=lambda: box[0].moved() if box else None,
    )

    def beat(mlflow_id: str) -> None:
        store.client.set_tag(mlflow_id, "heartbeat", str(int(time.time())))

    box.append(Outbox(run.journal, delivery, beat=beat, unsure=resumed))
    run.outbox = box[0]
    return run
