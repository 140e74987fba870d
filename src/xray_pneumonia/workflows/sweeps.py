"""Runs `xray sweeps`: lists the studies and how far they are."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from xray_pneumonia.config import check
from xray_pneumonia.sweeps.catalogue import Entry, list_studies
from xray_pneumonia.terminal import print_table
from xray_pneumonia.types import Text


@dataclass(frozen=True, kw_only=True)
class SweepsConfig:
    """The top-level keys of sweeps.yaml."""

    home: Text
    storage: Text | None


def main(cfg: DictConfig) -> None:
    """List the studies."""
    check(cfg, SweepsConfig)
    entries = list_studies(cfg.storage, home=Path(cfg.home))
    if not entries:
        print("No sweep yet: xray train -m model=cnn,resnet starts one")
        return
    heads = ("name", "done", "running", "failed", "best", "last change", "searched")
    title = f"{len(entries)} sweep{'s' if len(entries) > 1 else ''}"
    print_table(title, heads, map(_row, entries), width=140, below=("best", "searched"))
    print(f"sweeps={len(entries)}", flush=True)


def _row(one: Entry) -> list[str]:
    done = f"{one.done} of {one.n_trials}" + (f" ({one.pruned} pruned)" if one.pruned else "")
    last = f"{one.changed:%Y-%m-%d %H:%M}" if one.changed else "-"
    return [one.name, done, str(one.running), str(one.failed), one.best, last, ", ".join(one.searched)]
