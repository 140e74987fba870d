"""Check and build: configs in, objects out; the only door to Hydra's instantiate. `compose` composes them.

The signatures of the constructors are the schema: their keyword-only parameters are the keys that a
config may set, with their types and ranges; positional parameters are handed in by the workflows.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xray_pneumonia import schema
from xray_pneumonia.errors import InputError

# What a config may build. A config is input, so the list stands in code, and names are exact.
TARGETS = frozenset(
    {
        "xray_pneumonia.data.augment.Augmentation",
        "xray_pneumonia.data.datamodule.XRayDataModule",
        "xray_pneumonia.data.images.sandbox.Limits",
        "xray_pneumonia.evaluation.settings.EvaluationSettings",
        "xray_pneumonia.models.cnn.CNN",
        "xray_pneumonia.models.mlp.MLP",
        "xray_pneumonia.models.resnet.ResNet",
        "xray_pneumonia.models.torchvision.TorchvisionNet",
        "xray_pneumonia.sweeps.settings.SweepSettings",
        "xray_pneumonia.tracking.store.TrackingSettings",
        "xray_pneumonia.training.losses.BinaryCrossEntropy",
        "xray_pneumonia.training.losses.FocalLoss",
        "xray_pneumonia.training.optimizers.adamw",
        "xray_pneumonia.training.optimizers.constant",
        "xray_pneumonia.training.optimizers.cosine",
        "xray_pneumonia.training.optimizers.onecycle",
        "xray_pneumonia.training.optimizers.plateau",
        "xray_pneumonia.training.optimizers.rmsprop",
        "xray_pneumonia.training.optimizers.sgd",
        "xray_pneumonia.training.trainer.TrainerSettings",
    }
)

Node = Mapping[str, Any]
PACKAGE = "xray_pneumonia.conf"


def groups() -> list[str]:
    """List the config groups."""
    return [entry.name for entry in resources.files(PACKAGE).iterdir() if entry.is_dir()]


def anchor(cfg: DictConfig) -> None:
    """Make the paths of a composed config absolute, so that it means the same from any folder.

    A folder may be called 2026, which Hydra reads as a number; what is no path at all is left for `check` to refuse.
    """
    cfg.home = _absolute(cfg.home)
    if "data" in cfg and not OmegaConf.is_missing(cfg.data, "root"):
        cfg.data.root = _absolute(cfg.data.root)


def _absolute(place: object) -> object:
    named = isinstance(place, str | int) and not isinstance(place, bool)
    return str(Path(str(place)).expanduser().resolve()) if named else place


def check(cfg: DictConfig, root: type) -> dict[str, Any]:
    """Check a composed config against the signatures of all it names, before anything is built or read.

    Args:
        cfg: the composed config.
        root: the class whose keyword-only parameters are the config's top-level keys.

    Returns:
        The config as plain, resolved values.

    Raises:
        InputError: with every problem found, each with its dotted key, its value and the nearest valid name.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        values = plain(cfg)
    except (OmegaConfBaseException, RecursionError) as error:
        raise InputError(f"the config does not resolve: {' '.join(str(error).split())}") from error
    problems = [f"{key}=???: needs a value" for key in missing]
    problems += schema.problems(values, root, prefix="")
    for key, node in _targets(values):
        name = node["_target_"]
        if isinstance(name, str) and name in TARGETS:
            problems += schema.problems(_settings(node), locate(name), prefix=key)
        else:
            hint = schema.nearest(str(name), TARGETS)
            problems.append(f"{key}_target_={name!r}: not on the list of what a config may build{hint}")
    if problems:
        raise InputError("\n  ".join(["the config is wrong:", *problems]) if len(problems) > 1 else problems[0])
    return values


def build(node: Node, *handed_in: Any) -> Any:
    """Build what a config group names; `handed_in` are the positional arguments that no config holds.

    Raises:
        InputError: anything in the node names a target that is not on the list, or is left to be looked up.
    """
    from hydra.utils import instantiate

    values = plain(node) if isinstance(node, DictConfig) else dict(node)
    for key, inner in _targets(values):
        if not isinstance(inner["_target_"], str) or inner["_target_"] not in TARGETS:
            raise InputError(f"{key}_target_={inner['_target_']!r}: not on the list of what a config may build")
    if "${" in repr(values):
        raise InputError(f"{values['_target_']}: its values are built as they are; nothing is looked up: {values}")
    return instantiate(values, _partial_=True, _convert_="all")(*handed_in)


def plain(cfg: DictConfig, *, resolve: bool = True) -> dict[str, Any]:
    """Turn a config into dicts, lists and values."""
    return OmegaConf.to_container(cfg, resolve=resolve)  # type: ignore[return-value]


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of every leaf; lists are leaves."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _targets(tree: Any, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Find every node with a `_target_`, in mappings and lists, however deep."""
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield prefix, tree
        for key, value in tree.items():
            yield from _targets(value, f"{prefix}{key}.")
    elif isinstance(tree, list):
        for position, value in enumerate(tree):
            yield from _targets(value, f"{prefix}{position}.")


def _settings(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != "_target_"}


def locate(name: str) -> Callable[..., Any]:
    """Import what a target on the list names."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)  # type: ignore[no-any-return]
