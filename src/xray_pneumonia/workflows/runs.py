"""Runs `xray runs`: lists the runs of an experiment, with state, result and what each changes of its experiment."""

from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from xray_pneumonia.config import Node, anchor, build, check
from xray_pneumonia.tracking.store import open_existing
from xray_pneumonia.tracking.stored_runs import StoredRun, find
from xray_pneumonia.types import Count

RESULT = {"AUROC": "best/auroc", "sensitivity": "operating/sensitivity", "specificity": "operating/specificity"}


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    """The top-level keys of runs.yaml."""

    home: str
    experiment_name: str | None
    most: Count
    tracking: Node


def main(cfg: DictConfig) -> None:
    """List the runs, the latest first."""
    anchor(cfg)
    check(cfg, RunsConfig)
    settings = build(cfg.tracking)
    if cfg.experiment_name:
        settings = replace(settings, experiment_name=cfg.experiment_name)
    store = open_existing(settings, home=Path(cfg.home))
    runs = find(store, {})[::-1]
    table = Table(title=f"Experiment {store.experiment_name}: {len(runs)} runs", title_justify="left")
    for head in ("run", "id", "verb", "state", *RESULT, "what it changes of its experiment"):
        table.add_column(head, overflow="fold")
    for run in runs[: cfg.most]:
        table.add_row(*_row(run))
    Console(width=None if Console().is_terminal else 140, markup=False, highlight=False).print(table)
    if len(runs) > cfg.most:
        print(f"{len(runs) - cfg.most} older ones are left out; most={len(runs)} shows them")
    print(f"runs={len(runs)}", flush=True)


def _row(run: StoredRun) -> list[str]:
    found = [f"{run.metrics[name]:.4f}" if name in run.metrics else "-" for name in RESULT.values()]
    known = [run.tags.get("verb", "-"), run.state, *found, run.tags.get("changes", "-")]
    return [run.name, run.run_id[:8], *known]
