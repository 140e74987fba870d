"""`xray train resume=RUN_ID`: go on with a run that was stopped, or refuse with what is no longer the same."""

import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from filelock import FileLock
from omegaconf import DictConfig, OmegaConf, open_dict

from xray_pneumonia.compose import asked
from xray_pneumonia.config import build, leaves, plain
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.data.records import fingerprint
from xray_pneumonia.errors import CheckpointDamaged, InputError
from xray_pneumonia.stored_config import load_stored
from xray_pneumonia.tracking.beginning import run_folder
from xray_pneumonia.tracking.process import alive
from xray_pneumonia.tracking.search import Found, find, get, mark_running
from xray_pneumonia.tracking.store import Store, open_existing, open_store
from xray_pneumonia.tracking.stored_runs import read_run
from xray_pneumonia.training.checkpoints import BEST, Saved, clean_up, newest_valid, verify
from xray_pneumonia.training.trainer import TrainerSettings
from xray_pneumonia.workflows.training_run import RECORDS, config_sha256, records_table

ANEW = "new"  # resume=new: the unfinished run stays as it is
PLACES = frozenset({"resume", "home", "tracking.uri", "tracking.experiment_name"})  # where to look, not what to train
MOST = 8  # differences shown
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumption:
    """A run that can go on: its own config, and the store in which it stands."""

    store: Store
    run_id: str
    cfg: DictConfig


@dataclass(frozen=True)
class Start:
    """Where a training starts: in which run (None: a new one), from which checkpoint (None: from nothing)."""

    run_id: str | None
    checkpoint: Path | None
    identity: Mapping[str, str]


def take_resume(cfg: DictConfig) -> str | None:
    """Take the key `resume` out of a config: what is left is one training, the same whether or not it goes on."""
    with open_dict(cfg):
        value = cfg.pop("resume", None)
    return None if value is None else str(value)


def open_resumption(cfg: DictConfig, run_id: str) -> Resumption:
    """Look a stopped run up, with the config it was started with.

    Args:
        cfg: composed from the command that asks for it.
        run_id: of the run.

    Raises:
        InputError: it is finished, still running, has no whole checkpoint, or the command asks for another config.
    """
    store = open_store(build(cfg.tracking), home=Path(cfg.home))
    run = read_run(store, run_id, unfinished=True)
    if run.tags.get("verb") != "train":
        raise InputError(f"resume={run_id}: is no training but `xray {run.tags.get('verb')}`; start that again")
    if run.status == "FINISHED":
        raise InputError(
            f"resume={run_id}: is finished, nothing is left to train; judge it (xray evaluate run_id={run_id}) or "
            "train longer in a new run"
        )
    _require_dead(run.run_id, run.status, run.tags)
    stored = load_stored(run.config, origin=f"resume={run_id}", sha256=run.tags["config_sha256"])
    _require_same_config(cfg, stored, run_id)
    saved = newest_valid(run_folder(run.store, run_id) / "checkpoints")
    if saved is None:
        raise InputError(
            f"resume={run_id}: was stopped before its first checkpoint, so there is nothing to go on from; start it "
            "again with its command and resume=new"
        )
    return Resumption(run.store, run_id, stored)


def offer(cfg: DictConfig) -> None:
    """Refuse to start what was begun before and never finished, and say how to go on with it.

    Raises:
        InputError: there is such a run, and its process is gone.
    """
    tracking = build(cfg.tracking)
    try:
        store = open_existing(tracking, home=Path(cfg.home))
        runs = find(store, {"verb": "train", "config_sha256": config_sha256(cfg)})
    except Exception as error:  # no store yet, or one that does not answer, which must not stop a training
        log.debug("looked for no unfinished run: %s", error)
        return
    for run in reversed(runs):
        if run.status == "FINISHED" or "mlflow.parentRunId" in run.tags or _alive(run.status, run.tags):
            continue
        where = _where(store, run)
        if where:
            end = "its process is gone" if run.status == "RUNNING" else run.status
            raise InputError(
                f"this very training was begun before and stopped {where} (run {run.run_id}, {end})\n"
                f"  xray train resume={run.run_id}    goes on with it\n"
                f"  resume={ANEW}, added to the command, starts again from the beginning"
            )


def begin(store: Store, run_id: str | None, identity: Mapping[str, str], data: XRayDataModule) -> Start:
    """Decide where a training starts, once its data are at hand.

    Args:
        store: where runs are kept.
        run_id: of the run that goes on; None for a new one.
        identity: what must be the same as when the run began.
        data: prepared.

    Raises:
        InputError: no checkpoint is whole, or config, data or schedule are no longer those of the run.
    """
    if run_id is None:
        return Start(None, None, identity)
    folder = run_folder(store, run_id)
    saved = newest_valid(folder / "checkpoints")
    if saved is None:  # a sweep's trial that was requeued before its first checkpoint
        return Start(run_id, None, identity)
    _require_same(saved, run_id, identity, folder / RECORDS, data)
    if saved.epoch > 0:
        try:
            verify(folder / "checkpoints" / BEST)
        except CheckpointDamaged as error:
            raise InputError(f"{error}; the best epoch of run {run_id} is lost: start again with resume=new") from error
    clean_up(folder / "checkpoints", saved)
    log.info("run %s goes on %s", run_id, saved.where)
    return Start(run_id, saved.path, identity)


def claim(store: Store, run_id: str) -> None:
    """Mark a run as running before it goes on, so that of two who resume it at once one is refused.

    Raises:
        InputError: another process was faster.
    """
    with FileLock(store.home / ".resume.lock"):
        run = get(store, run_id)
        _require_dead(run_id, run.status, run.tags)
        mark_running(store, run_id)


def identity_of(cfg: DictConfig, data: XRayDataModule, settings: TrainerSettings) -> dict[str, str]:
    """Name what must be the same for going on: config, data, and the length of the schedule."""
    batches = min(len(data.train_dataloader()), settings.limit_train_batches or 2**31)
    schedule = f"{settings.max_epochs} epochs of {-(-batches // settings.accumulate_batches)} steps"
    return {"config": config_sha256(cfg), "records": fingerprint(data.records), "schedule": schedule}


def _require_same(saved: Saved, run_id: str, identity: Mapping[str, str], records: Path, data: XRayDataModule) -> None:
    changed = [key for key in identity if saved.identity.get(key) != identity[key]]
    if not changed:
        return
    lines = [f"{key}: {saved.identity.get(key)} in the run, {identity[key]} now" for key in changed]
    if "records" in changed:
        lines += _changed_records(records, data)
    raise InputError("\n  ".join([f"run {run_id}: cannot go on, since it is no longer the same:", *lines]))


def _require_dead(run_id: str, status: str, tags: Mapping[str, str]) -> None:
    if _alive(status, tags):
        raise InputError(
            f"resume={run_id}: is still running, as process {tags.get('pid')} on {tags.get('host')}; stop that first"
        )


def _alive(status: str, tags: Mapping[str, str]) -> bool:
    """Tell whether a run's process is there; one on another machine is believed to be."""
    if status != "RUNNING" or not {"host", "pid", "born"} <= set(tags):
        return False
    who = {key: value for key, value in tags.items() if key != "slurm"}  # whose requeued job is this very process
    return alive(who, silent=lambda: 0.0, stale_after=1.0)


def _where(store: Store, run: Found) -> str:
    """Say where a run stands; nothing where nothing could go on."""
    try:
        saved = newest_valid(run_folder(store, run.run_id) / "checkpoints")
    except InputError:
        return ""
    return saved.where if saved else ""


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
        shown = [*lines[:MOST], *([f"... and {len(lines) - MOST} more"] if len(lines) > MOST else [])]
        cure = f"leave the overrides out: `xray train resume={run_id}`, or start a new run without resume"
        raise InputError("\n  ".join([f"resume={run_id}: goes on with its own config; {cure}", *shown]))


def _changed_records(path: Path, data: XRayDataModule) -> list[str]:
    """List which records differ from those that the run began with."""
    if not path.is_file():
        return []
    then = pd.read_csv(io.BytesIO(path.read_bytes()), dtype=str, keep_default_na=False).set_index("id")
    now = records_table(data).astype(str).set_index("id")
    both = then.index.intersection(now.index)
    lines = [f"{name}: is gone" for name in then.index.difference(now.index)]
    lines += [f"{name}: is new" for name in now.index.difference(then.index)]
    for column, word in (
        ("sha256", "its content changed"),
        ("label", "its label changed"),
        ("split", "changed splits"),
    ):
        differ = then.loc[both, column] != now.loc[both, column]
        lines += [f"{name}: {word}" for name in both[differ.to_numpy()]]
    return [*lines[:MOST], *([f"... and {len(lines) - MOST} more"] if len(lines) > MOST else [])]
