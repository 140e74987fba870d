"""How Hydra finds the sweeper: it looks for plugins in this namespace package alone.

Every `xray` command imports this file, so nothing heavy may stand at its top.
"""

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StudySweeper(Sweeper):
    """Hands a multirun to `xray_pneumonia.sweeps`."""

    config: DictConfig

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands in."""
        self._context, self._task, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        """Run all trials; returns the best values."""
        from xray_pneumonia.sweeps.sweep import run

        return run(self.config, arguments, context=self._context, task=self._task)


NODE = {"_target_": "hydra_plugins.xray_study.StudySweeper"}
ConfigStore.instance().store(group="hydra/sweeper", name="study", node=NODE, provider="xray_pneumonia")
