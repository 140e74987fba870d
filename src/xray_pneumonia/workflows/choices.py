"""Lists the choices of a training: its config groups, what it overrides of its experiment, the name of its run."""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from omegaconf import OmegaConf

from xray_pneumonia import compose
from xray_pneumonia.config import PACKAGE, leaves, plain
from xray_pneumonia.masking import masked
from xray_pneumonia.tracking.run_names import free_name
from xray_pneumonia.tracking.store import Store

GROUPS = ("model", "augmentation", "optimizer", "loss", "scheduler")  # parameters of every training's run
# Keys that the tag `changes` leaves out: they say where a training runs and what it is called.
PLACES = ("home", "tracking", "data.root", "data.cache_dir", "trainer.threads", "sweep", "workers", "resume", "hydra")


def group_choices(config: Mapping[str, Any]) -> dict[str, str]:
    """Name the choice of each group.

    That is what the running command composed, where its `_target_` was not replaced; else (a stored config, a run of
    version 0.1.0) the package's choice with this target that has the most values in common; else the target's own name.

    Args:
        config: the values of a training, nested, or its parameters by their dotted keys.
    """
    flat = {key: str(value) for key, value in leaves(config)}
    composed = compose.choices()
    return {group: _choice(group, flat, composed.get(group)) for group in GROUPS if f"{group}._target_" in flat}


def parameters_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """List the parameters of a run: the leaves of its config (see `group_choices`), with choices for `_target_`."""
    named = {key: value for key, value in leaves(config) if not key.endswith("_target_")}
    return {**group_choices(config), **named}


def _choice(group: str, flat: Mapping[str, str], composed: str | None) -> str:
    target, known = flat[f"{group}._target_"], _packaged(group)
    fitting = {name: values for name, values in known.items() if values["_target_"] == target}
    if composed in fitting or (composed is not None and composed not in known):
        return composed

    def differing(name: str) -> int:
        return sum(flat.get(f"{group}.{key}") != value for key, value in fitting[name].items())

    return min(fitting, key=differing, default=target.rpartition(".")[2])


@cache
def _packaged(group: str) -> dict[str, dict[str, str]]:
    """Read the package's choices of a group: the leaves of each file, and of those it builds on, as text."""
    folder = resources.files(PACKAGE) / group
    names = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))
    return {name: _leaves(folder, name) for name in names}


def _leaves(folder: Traversable, name: str) -> dict[str, str]:
    node = OmegaConf.create((folder / f"{name}.yaml").read_text("utf-8"))
    values = plain(node, resolve=False)  # type: ignore[arg-type]
    below = [_leaves(folder, one) for one in values.pop("defaults", []) if one != "_self_"]
    own = {key: str(value) for key, value in leaves(values)}
    return {key: value for part in [*below, own] for key, value in part.items()}


def changes() -> str:
    """Word what the running command changes of its experiment: its overrides, as they were typed."""
    experiment = compose.choices().get("experiment")
    typed = [override.lstrip("+") for override in compose.overrides()]
    news = [one for one in typed if not one.startswith(("experiment=", *PLACES))]
    said = " ".join([*([f"experiment={experiment}:"] if experiment else []), *news])
    return masked(said) or "the defaults of train.yaml"


def run_name(store: Store, config: Mapping[str, Any], choices: Mapping[str, str]) -> str:
    """Name a run by what it is, as in `resnet-strong-s0`, with a suffix where the experiment has one of this name."""
    fold = [f"f{config['data']['fold']}"] if config["data"].get("folds") else []
    return free_name(store, "-".join([choices["model"], choices["augmentation"], f"s{config['seed']}", *fold]))
