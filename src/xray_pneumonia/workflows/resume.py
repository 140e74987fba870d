"""`xray train resume=RUN_ID`: resume a stopped run at the end of its last epoch, or refuse with what has changed."""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from xray_pneumonia.compose import asked
from xray_pneumonia.config import build, leaves, plain
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.data.records import fingerprint
from xray_pneumonia.errors import CheckpointDamaged, InputError, Stopped
from xray_pneumonia.tracking.process import alive
from xray_pneumonia.tracking.run import Run, run_folder
from xray_pneumonia.tracking.run_names import find_run_id
from xray_pneumonia.tracking.store import Store, TrackingSettings, open_existing, open_store
from xray_pneumonia.tracking.stored_runs import find, get, mark_running, read_run
from xray_pneumonia.training.checkpoints import BEST, Saved, clean_up, newest_valid, verify
from xray_pneumonia.training.trainer import TrainerSettings
from xray_pneumonia.whole_files import file_lock
from xray_pneumonia.workflows.own_code import load_config
from xray_pneumonia.workflows.training_run import RECORDS, read_records, records_table

NEW = "new"  # resume=new: a new run, and no line about a stopped one
PLACES = frozenset({"resume", "home", "tracking.uri", "tracking.experiment_name"})  # where to look, not what to train
MOST = 8  # differences shown
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumption:
    """A run that can be resumed, the store that holds it, and the config that it was started with."""

    store: Store
    run_id: str
    cfg: DictConfig
    sha256: str  # of the config as it was stored, which lacks the keys that came since


def open_resumption(cfg: DictConfig, run_id: str) -> Resumption:
    """Look a stopped run up, with the config it was started with.

    Raises:
        InputError: it is finished, still running, has no valid checkpoint, or the command asks for another config.
    """
    store = open_store(build(cfg.tracking), home=Path(cfg.home), existing=True)
    run_id = find_run_id(store, run_id, key="resume")
    run = read_run(store, run_id, unfinished=True)
    if run.tags.get("verb") != "train":
        raise InputError(f"resume={run_id}: is no training but `xray {run.tags.get('verb')}`; start that again")
    if run.status == "FINISHED":
        raise InputError(
            f"resume={run_id}: is finished, nothing is left to train; evaluate it (xray evaluate run_id={run_id}) or "
            "train longer in a new run"
        )
    _require_dead(run.run_id, run.status, run.tags)
    stored = load_config(run, origin=f"resume={run_id}")
    _require_same_config(cfg, stored, run_id)
    try:
        saved = newest_valid(run_folder(run.store, run_id) / "checkpoints")
    except InputError as error:
        raise InputError(f"resume={run_id}: {error}") from error
    if saved is None:
        raise InputError(
            f"resume={run_id}: was stopped before the end of its first epoch, so there is no checkpoint; start it "
            "again with its command"
        )
    return Resumption(run.store, run_id, stored, run.tags["config_sha256"])


def mention_stopped(tracking: TrackingSettings, config_sha256: str, *, home: Path) -> None:
    """Print one line to standard error where the latest run of this very config was stopped and can be resumed."""
    try:
        store = open_existing(tracking, home=home)
        runs = find(store, {"verb": "train", "config_sha256": config_sha256})
        run = next((one for one in reversed(runs) if "mlflow.parentRunId" not in one.tags), None)
        if run is None or run.status == "FINISHED" or _alive(run.status, run.tags):
            return
        saved = newest_valid(run_folder(store, run.run_id) / "checkpoints")
    except Exception as error:  # no store yet, or one that does not answer, which must not stop a training
        log.debug("looked for no stopped run: %s", error)
        return
    if saved:
        print(
            f"xray: training anew; run {run.run_id} of the same config stopped {saved.where}: "
            f"`xray train resume={run.run_id}` resumes it",
            file=sys.stderr,
        )


@contextmanager
def explain_stop(run: Run, *, resumable: bool) -> Iterator[None]:
    """Say on standard error what SIGTERM or Ctrl-C loses, and how to resume."""
    try:
        yield
    except Stopped:
        with suppress(InputError):  # of damaged checkpoints: a resumption says which
            saved = newest_valid(run.folder / "checkpoints")
            lost = [] if saved and saved.trained else ["the epoch under way is lost"]
            cure = f"`xray train resume={run.run_id}` resumes {saved.where}" if saved else "no epoch was completed"
            print("xray:", "; ".join([*lost, *([cure] if resumable else [])]) or "stopping", file=sys.stderr)
        raise


def find_checkpoint(store: Store, run_id: str, identity: Mapping[str, str], data: XRayDataModule) -> Path | None:
    """Find the checkpoint from which a run is resumed; None where a trial was stopped before its first one.

    Raises:
        InputError: no checkpoint is valid, or config, data or schedule are no longer those of the run.
    """
    folder = run_folder(store, run_id)
    saved = newest_valid(folder / "checkpoints")
    if saved is None:
        return None
    _require_same(saved, run_id, identity, folder / RECORDS, data)
    try:
        verify(folder / "checkpoints" / BEST)
    except CheckpointDamaged as error:
        raise InputError(f"{error}; the best epoch of run {run_id} is lost: start again with resume=new") from error
    clean_up(folder / "checkpoints", saved)
    log.info("run %s is resumed %s", run_id, saved.where)
    return saved.path


def claim(store: Store, run_id: str) -> None:
    """Mark a run as running before it is resumed: of two processes that do so at once one gets an InputError."""
    with file_lock(store.home / ".resume.lock"):
        run = get(store, run_id)
        _require_dead(run_id, run.status, run.tags)
        mark_running(store, run_id)


def identity_of(config_sha256: str, data: XRayDataModule, settings: TrainerSettings) -> dict[str, str]:
    """Name what must be the same to resume: config, data, and the length of the schedule."""
    batches = min(len(data.train_dataloader()), settings.limit_train_batches or 2**31)
    schedule = f"{settings.max_epochs} epochs of {-(-batches // settings.accumulate_batches)} steps"
    return {"config": config_sha256, "records": fingerprint(data.records), "schedule": schedule}


def _require_same(saved: Saved, run_id: str, identity: Mapping[str, str], records: Path, data: XRayDataModule) -> None:
    changed = [key for key in identity if saved.identity.get(key) != identity[key]]
    if not changed:
        return
    lines = [f"{key}: {saved.identity.get(key)} in the run, {identity[key]} now" for key in changed]
    if "records" in changed:
        lines += _changed_records(records, data)
    raise InputError("\n  ".join([f"run {run_id}: cannot be resumed, since it is no longer the same:", *lines]))


def _require_dead(run_id: str, status: str, tags: Mapping[str, str]) -> None:
    if _alive(status, tags):
        raise InputError(
            f"resume={run_id}: is still running, as process {tags.get('pid')} on {tags.get('host')}; stop that first"
        )


def _alive(status: str, tags: Mapping[str, str]) -> bool:
    """Tell whether a run's process is there; one on another machine is believed to be."""
    if status != "RUNNING" or not {"host", "pid", "born"} <= set(tags):
        return False
    return alive(tags, silent=lambda: 0.0, stale_after=1.0)


def _require_same_config(cfg: DictConfig, stored: DictConfig, run_id: str) -> None:
    """Refuse overrides that would change the run."""
    keys = [key for key in asked() if key not in PLACES and not key.startswith("hydra")]
    if not keys:
        return
    now, then = dict(leaves(plain(cfg))), dict(leaves(plain(stored)))
    chosen = [key for key in (now | then) if any(key == each or key.startswith(f"{each}.") for each in keys)]
    if any(OmegaConf.select(cfg, key) is None and key not in now for key in keys):  # experiment=..., which sets others
        chosen = list(now | then)
    lines = [
        f"{key}: {then.get(key)} in the run, {now.get(key)} asked for"
        for key in chosen
        if now.get(key) != then.get(key) and key not in PLACES
    ]
    if lines:
        cure = f"leave the overrides out: `xray train resume={run_id}`, or start a new run without resume"
        raise InputError("\n  ".join([f"resume={run_id}: keeps its own config; {cure}", *_first(lines)]))


def _changed_records(path: Path, data: XRayDataModule) -> list[str]:
    """List which records differ from those that the run began with."""
    if not path.is_file():
        return []
    then = read_records(path)
    now = records_table(data.records).astype(str).set_index("id")
    both = then.index.intersection(now.index)
    lines = [f"{name}: is gone" for name in then.index.difference(now.index)]
    lines += [f"{name}: is new" for name in now.index.difference(then.index)]
    columns = {"sha256": "its content changed", "label": "its label changed", "split": "changed splits"}
    for column, change in columns.items():
        differ = then.loc[both, column] != now.loc[both, column]
        lines += [f"{name}: {change}" for name in both[differ.to_numpy()]]
    return _first(lines)


def _first(lines: list[str]) -> list[str]:
    return [*lines[:MOST], *([f"... and {len(lines) - MOST} more"] if len(lines) > MOST else [])]
