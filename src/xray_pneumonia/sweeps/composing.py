"""Configs of many trials that differ in values alone: composed once, then changed in a copy.

Hydra reads and merges about twenty files for each trial, most of what a trial costs beyond its training.
"""

import copy
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict


class WarmLoader:
    """Hydra's config loader, which remembers what it has composed.

    Overrides that choose groups, add or delete keys are composed by Hydra, once for each combination; those
    that set a value (`key=` of a key that is there, `++key=` of any) are set in a copy, as Hydra does after composing.

    Args:
        loader: Hydra's.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def __getattr__(self, name: str) -> Any:
        """Leave everything else to Hydra's own."""
        return getattr(self._loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        """Compose the config of one trial."""
        parser = OverridesParser.create(config_loader=self._loader)
        overrides = parser.parse_overrides(list(sweep_overrides))
        values = [each for each in overrides if self._sets_a_value(each)]
        keys = [each.key_or_group for each in overrides]
        if len(set(keys)) < len(keys):  # the order decides, which is Hydra's business
            values = []
        rest = tuple(str(each.input_line) for each in overrides if each not in values)
        if rest not in self._composed:
            self._composed[rest] = self._loader.load_sweep_config(master_config, list(rest))
        cfg = copy.deepcopy(self._composed[rest])
        if any(_is_missing(cfg, each) for each in values):  # Hydra says what is wrong
            return self._loader.load_sweep_config(master_config, list(sweep_overrides))  # type: ignore[no-any-return]
        for each in values:
            OmegaConf.update(cfg, each.key_or_group, each.value(), merge=True, force_add=each.is_force_add())
        with open_dict(cfg):
            cfg.hydra.overrides.task = [each for each in sweep_overrides if not each.startswith("hydra")]
            cfg.hydra.job.override_dirname = ",".join(sorted(cfg.hydra.overrides.task))
        OmegaConf.copy_cache(from_config=master_config, to_config=cfg)
        return cfg

    def _sets_a_value(self, override: Override) -> bool:
        changes = not (override.is_add() or override.is_delete())
        named = override.package is not None or self._loader.repository.group_exists(override.key_or_group)
        return changes and not named and not override.key_or_group.startswith("hydra")


def _is_missing(cfg: DictConfig, override: Override) -> bool:
    nothing = object()
    return not override.is_force_add() and OmegaConf.select(cfg, override.key_or_group, default=nothing) is nothing
