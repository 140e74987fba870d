"""Finds the experiment and the trainings that a command names, for the verbs that look at many runs."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from xray_pneumonia.config import build
from xray_pneumonia.errors import InputError, nearest
from xray_pneumonia.tracking.run_names import find_run_id
from xray_pneumonia.tracking.store import Store, open_existing
from xray_pneumonia.tracking.stored_runs import PARENT, StoredRun, find

log = logging.getLogger(__name__)


def open_experiment(cfg: DictConfig) -> Store:
    """Open the store at the experiment that `experiment_name` names, or at the one of `tracking`."""
    settings = build(cfg.tracking)
    named = replace(settings, experiment_name=cfg.experiment_name or settings.experiment_name)
    return open_existing(named, home=Path(cfg.home))


def output_folder(cfg: DictConfig, name: str, store: Store) -> Path:
    """Make the folder that `output` names, or one of this name in the home."""
    folder = Path(cfg.output or Path(cfg.home) / name / store.experiment_name).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def find_trainings(
    store: Store, *, sweep_name: str | None, run_ids: Sequence[str] | None, pruned: bool = False
) -> list[StoredRun]:
    """Find the finished trainings that were asked for, by sweep or by name; else all of the experiment.

    Raises:
        InputError: there are none; the message says what there is instead.
    """
    runs = find(store, {"verb": "train"}, status="FINISHED")
    if sweep_name:
        names = {run.tags["sweep.name"] for run in runs if "sweep.name" in run.tags}
        parents = {run.tags.get(PARENT) for run in runs}
        if sweep_name not in names | parents:
            hint = nearest(sweep_name, names) or f"; there are {', '.join(sorted(names)) or 'none'}"
            raise InputError(f"sweep_name={sweep_name}: no such sweep in experiment {store.experiment_name}{hint}")
        runs = [run for run in runs if sweep_name in {run.tags.get("sweep.name"), run.tags.get(PARENT)}]
    if run_ids:
        known = {run.run_id: run for run in runs}
        asked = [find_run_id(store, text, key="run_ids") for text in run_ids]
        unknown = [run_id for run_id in asked if run_id not in known]
        if unknown:
            raise InputError(f"run_ids={unknown}: no finished training of {store.experiment_name} has this id")
        if len({*asked}) < len(asked):
            raise InputError(f"run_ids={list(run_ids)}: name each run once")
        return [known[run_id] for run_id in asked]
    if not runs:
        raise InputError(f"experiment_name={store.experiment_name}: holds no finished training; train with xray train")
    return runs if pruned else _without_pruned(runs)


def _without_pruned(runs: list[StoredRun]) -> list[StoredRun]:
    """Leave out the trials that a sweep ended early: their best of few epochs is no fair figure."""
    kept = [run for run in runs if run.tags.get("sweep.state") != "PRUNED"]
    if not kept:
        raise InputError(f"pruned=false: all {len(runs)} trainings were ended early by their sweep; see pruned=true")
    if len(kept) < len(runs):
        log.info("%d trials that a sweep ended early are left out; pruned=true shows them", len(runs) - len(kept))
    return kept
