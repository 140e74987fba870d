"""Runs `xray ui`: serves MLflow's pages of the store on this machine, and prints the address of the last runs."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from xray_pneumonia.config import Node, build, check
from xray_pneumonia.errors import InputError
from xray_pneumonia.tracking.run_names import find_run_id, last_touched
from xray_pneumonia.tracking.server import address, leaderboard_path, runs_path, serve
from xray_pneumonia.tracking.store import ensure_leaderboard, open_database
from xray_pneumonia.tracking.stored_runs import StoredRun, get
from xray_pneumonia.types import Port, Text

NAMED = 3  # runs that are named in the line above their address


@dataclass(frozen=True, kw_only=True)
class UiConfig:
    """The top-level keys of ui.yaml."""

    home: Text
    port: Port | None
    run_ids: list[Text] | None
    tracking: Node


def main(cfg: DictConfig) -> None:
    """Serve until Ctrl-C; where a server of this store runs already, print the addresses alone."""
    check(cfg, UiConfig)
    store = open_database(build(cfg.tracking), home=Path(cfg.home))
    asked = [get(store, find_run_id(store, text, key="run_ids")) for text in cfg.run_ids or []]
    runs = asked or last_touched(store)
    if len({run.store.experiment_id for run in runs}) > 1:
        raise InputError(f"run_ids={list(cfg.run_ids)}: are of several experiments; MLflow compares those of one")
    for run in runs[:1]:
        ensure_leaderboard(run.store)
    if base := address(store):
        _print(base, runs)
        return
    with serve(store, cfg.port) as (base, process):
        _print(base, runs)
        process.wait()


def _print(base: str, runs: list[StoredRun]) -> None:
    if not runs:
        print(f"No run yet; See it: {base}", flush=True)
        return
    named = ", ".join(f"{run.name} ({run.run_id[:8]})" for run in runs[:NAMED])
    more = f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
    print(f"Leaderboard: {base}{leaderboard_path(runs[0].store)}")
    print(f"{named}{more}; Ctrl-C ends the server")
    print(f"See it: {base}{runs_path(runs[0].store, [run.run_id for run in runs])}", flush=True)
