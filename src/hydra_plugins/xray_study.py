"""Registers the sweeper with Hydra, which looks for plugins only in this namespace package.

Every `xray` command imports this file, so it imports nothing heavy at its top.
"""

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StudySweeper(Sweeper):
    """Runs a multirun with `xray_pneumonia.sweeps`."""

    config: DictConfig

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra passes in."""
        self._context, self._task, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        """Run all trials; returns the best value."""
        from xray_pneumonia.sweeps.sweep import run
        from xray_pneumonia.workflows.train import TrainConfig

        return run(self.config, arguments, context=self._context, task=self._task, root=TrainConfig)


NODE = {"_target_": "hydra_plugins.xray_study.StudySweeper"}
ConfigStore.instance().store(group="hydra/sweeper", name="study", node=NODE, provider="xray_pneumonia")
