"""Check configs against the signatures of what they name, and build it; the only caller of Hydra's instantiate.

The signatures are the schema: keyword-only parameters are the keys that a config may set, with their types and ranges;
positional parameters are handed in by the workflows.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module, resources
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xray_pneumonia.errors import InputError, nearest
from xray_pneumonia.masking import remember

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
NOT_LISTED = "not on the list of what a config may build"
Node = Mapping[str, Any]
ADDRESSES = ("tracking.uri", "sweep.storage", "storage")  # keys whose values may hold secrets
PACKAGE = "xray_pneumonia.conf"  # of the config files


def groups() -> list[str]:
    """List the config groups."""
    return [entry.name for entry in resources.files(PACKAGE).iterdir() if entry.is_dir()]


def anchor(cfg: DictConfig) -> None:
    """Make the paths of a composed config absolute, so that it means the same from any folder.

    A folder may be called 2026, which Hydra reads as a number; what is no path at all is left for `check` to refuse.
    """
    remember_references(cfg)
    cfg.home = _absolute(cfg.home)
    if "data" in cfg and not OmegaConf.is_missing(cfg.data, "root"):
        cfg.data.root = _absolute(cfg.data.root)


def remember_references(cfg: DictConfig) -> None:
    """Have the addresses that a config looks up in the environment stored and shown as it writes them."""
    for key in ADDRESSES:
        group, _, name = key.rpartition(".")
        holder = OmegaConf.select(cfg, group) if group else cfg
        if isinstance(holder, DictConfig) and name in holder and OmegaConf.is_interpolation(holder, name):
            written = plain(holder, resolve=False)[name]
            with suppress(OmegaConfBaseException):  # `check` words it
                if "oc.env" in written:
                    remember(str(holder[name]), written)


def _absolute(place: object) -> object:
    named = isinstance(place, str | int) and not isinstance(place, bool) and place != ""
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
    found = [f"{key}=???: needs a value" for key in missing] + problems(values, root, prefix="")
    for key, node in _targets(values):
        name = node["_target_"]
        if may_build(name):
            settings = {key: value for key, value in node.items() if key != "_target_"}
            found += problems(settings, locate(name), prefix=key)
        else:
            found.append(f"{key}_target_={name!r}: {NOT_LISTED}{nearest(str(name), TARGETS)}")
    if found:
        raise InputError("\n  ".join(["the config is wrong:", *found]) if len(found) > 1 else found[0])
    return values


def problems(values: dict[str, Any], target: Callable[..., Any], *, prefix: str) -> list[str]:
    """Validate values against the keyword-only parameters of a target.

    Args:
        values: what a config sets.
        target: a class or function with annotated parameters.
        prefix: the dotted key of the node, with its last dot.

    Returns:
        One line for each wrong key: the key, its value, what it should be.
    """
    from pydantic import ValidationError

    names, adapter = _adapter(target)
    try:
        adapter.validate_python(values)
    except ValidationError as error:
        return _worded(error.errors(), values, names, prefix=prefix)
    return []


@cache
def _adapter(target: Callable[..., Any]) -> tuple[list[str], Any]:
    """Make pydantic's validator of the keyword-only parameters of a target, which takes it milliseconds."""
    from pydantic import ConfigDict, TypeAdapter, with_config
    from typing_extensions import TypedDict

    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    names = [p.name for p in inspect.signature(target).parameters.values() if p.kind is p.KEYWORD_ONLY]
    rules = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    schema = with_config(rules)(TypedDict("schema", {name: hints[name] for name in names}))  # type: ignore[misc, operator]
    return names, TypeAdapter(schema)


def _worded(errors: list[Any], values: dict[str, Any], names: list[str], *, prefix: str) -> list[str]:
    """Word pydantic's errors: one line for each key, with its value and what it should be."""
    lines: dict[str, list[str]] = {}
    for error in errors:
        path, value = _real_path(error["loc"], values)
        key = f"{prefix}{'.'.join(map(str, path))}={value!r}"
        what = error["msg"].replace("Input should", "should")
        if error["type"] == "extra_forbidden":
            what = f"unknown key{nearest(str(path[-1]), names, prefix)}"
        elif error["type"] == "missing":
            key = key if path else prefix.rstrip(".") or "the config"
            what = f"lacks {error['loc'][-1]}"
        lines.setdefault(key, []).append(what)
    return [f"{key}: {' or '.join(parts)}" for key, parts in lines.items()]


def _real_path(loc: tuple[int | str, ...], values: Any) -> tuple[list[int | str], Any]:
    """Cut from pydantic's location what names a branch of a union instead of a key."""
    path: list[int | str] = []
    for step in loc:
        known = values if isinstance(values, dict) else dict(enumerate(values)) if isinstance(values, list) else {}
        if step in known:
            path.append(step)
            values = known[step]
    return path, values


def may_build(name: object) -> bool:
    """Tell whether a `_target_` is on the list; a list or mapping in its place is not."""
    return isinstance(name, str) and name in TARGETS


def build(node: Node, *handed_in: Any) -> Any:
    """Build what a config group names; `handed_in` are the positional arguments that no config holds.

    Raises:
        InputError: anything in the node names a target that is not on the list, or is left to be looked up.
    """
    from hydra.utils import instantiate

    values = plain(node) if isinstance(node, DictConfig) else dict(node)
    for key, inner in _targets(values):
        if not may_build(inner["_target_"]):
            raise InputError(f"{key}_target_={inner['_target_']!r}: {NOT_LISTED}")
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


def locate(name: str) -> Callable[..., Any]:
    """Import what a target on the list names."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)  # type: ignore[no-any-return]
