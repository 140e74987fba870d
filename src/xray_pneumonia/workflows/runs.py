"""Runs `xray runs`: lists the runs of an experiment, with state, result and what each changes of its experiment."""

from dataclasses import dataclass

from omegaconf import DictConfig

from xray_pneumonia.config import Node, check
from xray_pneumonia.terminal import print_table
from xray_pneumonia.tracking.stored_runs import StoredRun, find
from xray_pneumonia.types import Count, Text
from xray_pneumonia.workflows.find_runs import open_experiment

RESULT = {"AUROC": "best/auroc", "sensitivity": "operating/sensitivity", "specificity": "operating/specificity"}

CHANGES = "what it changes of its experiment"


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    """The top-level keys of runs.yaml."""

    home: Text
    experiment_name: Text | None
    most: Count
    tracking: Node


def main(cfg: DictConfig) -> None:
    """List the runs, the latest first."""
    check(cfg, RunsConfig)
    store = open_experiment(cfg)
    runs = find(store, {})[::-1]
    title = f"Experiment {store.experiment_name}: {len(runs)} runs"
    heads = ("run", "id", "verb", "state", *RESULT, CHANGES)
    print_table(title, heads, map(_row, runs[: cfg.most]), width=140, below=("run", CHANGES))
    if len(runs) > cfg.most:
        print(f"{len(runs) - cfg.most} older ones are left out; most={len(runs)} shows them")
    print(f"runs={len(runs)}", flush=True)


def _row(run: StoredRun) -> list[str]:
    found = [f"{run.metrics[name]:.4f}" if name in run.metrics else "-" for name in RESULT.values()]
    known = [run.tags.get("verb", "-"), run.state, *found, run.tags.get("changes", "-")]
    return [run.name, run.run_id[:8], *known]
