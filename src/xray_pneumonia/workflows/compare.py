"""`xray compare`: the runs of an experiment or a sweep side by side, repeats grouped, two of them tested."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal
from urllib.parse import quote

import pandas as pd
from annotated_types import Len
from omegaconf import DictConfig

from xray_pneumonia.config import Node, anchor, build, check
from xray_pneumonia.errors import InputError, nearest
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.evaluation.comparison import Difference, compare
from xray_pneumonia.evaluation.report import figures
from xray_pneumonia.evaluation.report.figures_runs import TITLES, overlaid_curves
from xray_pneumonia.evaluation.run_groups import Entry, Group, group, pool, tabulate
from xray_pneumonia.tracking import search
from xray_pneumonia.tracking.search import Found
from xray_pneumonia.tracking.store import Store, masked, open_existing
from xray_pneumonia.types import Count, Seed
from xray_pneumonia.workflows.compare_tables import Format, basis, show, show_test

TESTED = ("auroc", "accuracy", "sensitivity", "specificity")
THRESHOLD = 0.5  # until an operating point is chosen on validation
DRAWN = 8  # groups in the figure; more cannot be told apart
log = logging.getLogger(__name__)
Figure = Literal[
    "auroc",
    "accuracy",
    "average_precision",
    "sensitivity",
    "specificity",
    "balanced_accuracy",
    "shift/auroc",
    "shift/accuracy",
    "shift/sensitivity",
    "shift/specificity",
    "shift/balanced_accuracy",
    "shift/calibration_error",
]


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """The top-level keys of compare.yaml."""

    home: str
    experiment_name: str | None
    sweep_name: str | None
    run_ids: list[str] | None
    pruned: bool
    metrics: Annotated[list[Figure], Len(1)]
    format: Format
    pair: Annotated[list[Count], Len(2, 2)] | None
    replicates: Count
    seed: Seed
    output: str | None
    tracking: Node


def main(cfg: DictConfig) -> None:
    """Find, group, print, test, draw."""
    anchor(cfg)
    check(cfg, CompareConfig)
    settings = build(cfg.tracking)
    if cfg.experiment_name:
        settings = replace(settings, experiment_name=cfg.experiment_name)
    store = open_existing(settings, home=Path(cfg.home))
    found = _find(store, cfg)
    logged = {name: name if "/" in name else f"best/{name}" for name in cfg.metrics}
    groups = group([_entry(run) for run in found], best_by=logged[cfg.metrics[0]], maximize=True)
    table = tabulate(groups, logged)
    folder = Path(cfg.output or Path(cfg.home) / "comparison" / store.experiment_name).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "runs.csv")
    show(table, list(cfg.metrics), cfg.format)
    if cfg.format != "csv":
        kept = {run.params.get("trainer.keep", "best") for run in found}
        chosen = "best" in kept or any(run.params.get("trainer.patience") != "None" for run in found)
        metrics = [run.metrics for run in found]
        print("\n".join(["", *basis(metrics, cfg.metrics, kept=kept, chosen=chosen, threshold=THRESHOLD)]))
    pair = _pair(cfg.pair, groups)
    if pair:
        by_id = {run.run_id: run for run in found}
        show_test(_test(store, [groups[i - 1] for i in pair], by_id, cfg), pair, cfg.format)
    _draw(store, groups, folder / "learning_curves.png")
    _say_where(store, found, folder, quiet=cfg.format != "rich")


def _find(store: Store, cfg: DictConfig) -> list[Found]:
    """Find the finished trainings that were asked for.

    Raises:
        InputError: there are none, and what there is instead.
    """
    runs = search.find(store, {"verb": "train"}, status="FINISHED")
    if cfg.sweep_name:
        names = {run.tags["sweep.name"] for run in runs if "sweep.name" in run.tags}
        parents = {run.tags.get(search.PARENT) for run in runs}
        if cfg.sweep_name not in names | parents:
            hint = nearest(cfg.sweep_name, names) or f"; there are {', '.join(sorted(names)) or 'none'}"
            raise InputError(f"sweep_name={cfg.sweep_name}: no such sweep in experiment {store.experiment_name}{hint}")
        runs = [run for run in runs if cfg.sweep_name in {run.tags.get("sweep.name"), run.tags.get(search.PARENT)}]
    if cfg.run_ids:
        known = {run.run_id: run for run in runs}
        unknown = [run_id for run_id in cfg.run_ids if run_id not in known]
        if unknown:
            raise InputError(
                f"run_ids={unknown}: no finished training in experiment {store.experiment_name} has this id"
            )
        return [known[run_id] for run_id in cfg.run_ids]
    if not runs:
        raise InputError(f"experiment_name={store.experiment_name}: holds no finished training; train with xray train")
    return runs if cfg.pruned else _trained_to_the_end(runs)


def _trained_to_the_end(runs: list[Found]) -> list[Found]:
    """Leave out the trials that a sweep ended early: their best of few epochs is no fair figure."""
    kept = [run for run in runs if run.tags.get("sweep.state") != "PRUNED"]
    if not kept:
        raise InputError(f"pruned=false: all {len(runs)} trainings were ended early by their sweep; see pruned=true")
    if len(kept) < len(runs):
        log.info("%d trials that a sweep ended early are left out; pruned=true shows them", len(runs) - len(kept))
    return kept


def _entry(run: Found) -> Entry:
    return Entry(run.run_id, run.name, run.params, run.metrics)


def _pair(asked: Sequence[int] | None, groups: Sequence[Group]) -> tuple[int, int] | None:
    """Choose the two groups to test, counted from 1: those asked for, else all there are if these are two."""
    if asked is None:
        return (1, 2) if len(groups) == 2 else None
    if len(set(asked)) < 2 or max(asked) > len(groups):
        raise InputError(f"pair={list(asked)}: two different groups from 1 to {len(groups)} make a pair")
    return asked[0], asked[1]


def _test(store: Store, pair: Sequence[Group], found: dict[str, Found], cfg: DictConfig) -> list[Difference]:
    """Test two groups on the predictions that their runs stored."""
    first, second = (_predictions(store, one, found) for one in pair)
    shared = set(first["id"]) & set(second["id"])
    if not shared:
        raise InputError("pair: the two groups were validated on different images, so nothing can be paired")
    tables = [table[table["id"].isin(shared)].reset_index(drop=True) for table in (first, second)]
    done = compare(*tables, thresholds=(THRESHOLD, THRESHOLD), replicates=cfg.replicates, seed=cfg.seed)
    return [difference for difference in done if difference.name in TESTED]


def _predictions(store: Store, one: Group, found: dict[str, Found]) -> pd.DataFrame:
    tables = []
    with TemporaryDirectory() as folder:
        for entry in one.entries:
            target = Path(folder) / entry.run_id
            target.mkdir()
            path = search.artifact(store, found[entry.run_id], "predictions/val.csv", folder=target)
            if path is None:
                raise InputError(f"run {entry.run_id}: has no predictions/val.csv; leave it out with run_ids=[...]")
            tables.append(predictions.read(path))
    return pool(tables)


def _draw(store: Store, groups: Sequence[Group], path: Path) -> None:
    histories = {
        f"group {place}": [
            {metric: search.history(store, entry.run_id, metric) for metric in TITLES} for entry in one.entries
        ]
        for place, one in enumerate(groups[:DRAWN], start=1)
    }
    figures.save(overlaid_curves(histories), path)


def _say_where(store: Store, found: Sequence[Found], folder: Path, *, quiet: bool) -> None:
    if quiet:
        return
    print(f"Learning curves and table: {folder}")
    print(f"See it: mlflow ui --backend-store-uri {masked(store.uri)}")
    ids = quote(json.dumps([run.run_id for run in found], separators=(",", ":")))
    print(f"  http://127.0.0.1:5000/#/compare-runs?runs={ids}&experiments={quote(json.dumps([store.experiment_id]))}")
