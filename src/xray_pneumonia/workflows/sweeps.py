"""Runs `xray sweeps`: lists the studies and how far they are."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from xray_pneumonia.config import anchor, check
from xray_pneumonia.sweeps.catalogue import list_studies


@dataclass(frozen=True, kw_only=True)
class SweepsConfig:
    """The top-level keys of sweeps.yaml."""

    home: str
    storage: str | None


def main(cfg: DictConfig) -> None:
    """List the studies."""
    anchor(cfg)
    check(cfg, SweepsConfig)
    entries = list_studies(cfg.storage, home=Path(cfg.home))
    if not entries:
        print("No sweep yet: xray train -m model=cnn,resnet starts one")
        return
    table = Table(title=f"{len(entries)} sweeps", title_justify="left", title_style="bold")
    for head in ("name", "done", "running", "failed", "best", "last change", "searched"):
        table.add_column(head, overflow="fold")
    for one in entries:
        done = f"{one.done} of {one.n_trials}" + (f" ({one.pruned} pruned)" if one.pruned else "")
        last = f"{one.changed:%Y-%m-%d %H:%M}" if one.changed else "-"
        table.add_row(one.name, done, str(one.running), str(one.failed), one.best, last, ", ".join(one.searched))
    Console(width=None if Console().is_terminal else 140, markup=False).print(table)
    print(f"sweeps={len(entries)}", flush=True)
