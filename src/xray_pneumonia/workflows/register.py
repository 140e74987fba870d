"""Runs `xray register`: gives the model of a run a name and an alias in the MLflow registry."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from xray_pneumonia.config import Node, build, check
from xray_pneumonia.tracking.registry import register
from xray_pneumonia.tracking.run_names import read_named
from xray_pneumonia.tracking.store import open_database
from xray_pneumonia.types import Text


@dataclass(frozen=True, kw_only=True)
class RegisterConfig:
    """The top-level keys of register.yaml."""

    home: Text
    run_id: Text
    alias: Text
    name: Text | None
    tracking: Node


def main(cfg: DictConfig) -> None:
    """Register the model and print its name, alias and version."""
    check(cfg, RegisterConfig)
    run = read_named(open_database(build(cfg.tracking), home=Path(cfg.home)), cfg.run_id)
    run.bundle()  # refuses a run without a model
    made = register(run, name=cfg.name or run.store.experiment_name, alias=cfg.alias)
    print(f"{made.name}@{made.alias} is version {made.version}: the model of run {run.run_id} ({run.name})")
