"""The best trial as a config that `xray train experiment=FILE` takes."""

import io
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial

from xray_pneumonia.config import groups
from xray_pneumonia.sweeps.plan import Plan
from xray_pneumonia.sweeps.space import overrides


def render(plan: Plan, trial: FrozenTrial, *, arguments: list[str], sweep_id: str) -> str:
    """Write a config with what the best trial changed of the defaults, and where it comes from."""
    lines = [line for line in arguments if not line.startswith(("sweep", "workers", "home", "tracking."))]
    parsed = OverridesParser.create().parse_overrides([*lines, *overrides(trial.params)])
    defaults: list[Any] = []
    values = OmegaConf.create({})
    for override in parsed:
        key, value = override.key_or_group, override.value()
        if key == "experiment":
            defaults.insert(0, str(value))
        elif key in groups():
            defaults.append({f"override /{key}": str(value)})
        else:
            OmegaConf.update(values, key, value, force_add=True)
    figures = ", ".join(f"{name} {value:.4f}" for name, value in zip(plan.objectives, trial.values, strict=True))
    text = io.StringIO()
    text.write(f"# @package _global_\n# Trial {trial.number} of sweep {plan.name} (run {sweep_id}): {figures}.\n")
    text.write(OmegaConf.to_yaml(OmegaConf.create({"defaults": [*defaults, "_self_"]})))
    if values:
        text.write("\n" + OmegaConf.to_yaml(values))
    return text.getvalue()
