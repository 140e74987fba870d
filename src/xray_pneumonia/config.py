"""Check configs against the signatures of what they name, and build it; the only caller of Hydra's instantiate.

The signatures are the schema: keyword-only parameters are the keys that a config may set, with their types and ranges;
positional parameters are handed in by the workflows.
"""

import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from xray_pneumonia import extensions, library_classes
from xray_pneumonia.errors import InputError, nearest
from xray_pneumonia.masking import remember
from xray_pneumonia.signatures import problems
from xray_pneumonia.whole_files import read_regular

# What a config may build. A config is input, so the list stands in code, and names are exact.
TARGETS = frozenset(
    {
        "xray_pneumonia.data.augment.Augmentation",
        "xray_pneumonia.data.datamodule.XRayDataModule",
        "xray_pneumonia.data.images.sandbox.Limits",
        "xray_pneumonia.evaluation.settings.EvaluationSettings",
        "xray_pneumonia.models.cnn.CNN",
        "xray_pneumonia.pacs.settings.DicomSettings",
        "xray_pneumonia.models.mlp.MLP",
        "xray_pneumonia.models.probe.Probe",
        "xray_pneumonia.models.resnet.ResNet",
        "xray_pneumonia.models.efficientnet_lite.EfficientNetLite",
        "xray_pneumonia.models.timm.TimmNet",
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
INIT = "init_from"  # key of `model` that the training takes, and no net
NOT_LISTED = "not on the list of what a config may build"
# Keys below which classes and functions of others may stand: those of `extensions`, and these of libraries.
OPEN = ("model", "loss", "optimizer", "scheduler", "augmentation", "callbacks", "loggers")
BUILT = "the class or function that is built"
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
    if isinstance(OmegaConf.select(cfg, "data.corrections", throw_on_missing=False), str):
        cfg.data.corrections = _pinned(cfg.data.corrections)


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


def _pinned(file: str) -> str:
    """Add the SHA-256 of its content to a file's path: a config that names it means the same whatever becomes of it."""
    if re.search("@[0-9a-f]{64}$", file):
        return file
    path = _absolute(file)
    try:
        return f"{path}@{hashlib.sha256(read_regular(str(path))).hexdigest()}"
    except OSError as error:
        raise InputError(f"data.corrections={path}: cannot be read: {error.strerror}; name a CSV file") from error


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
    items = [item for key in ("callbacks", "loggers") for item in values.get(key) or []]
    found += [f"{item}: lacks _target_, {BUILT}" for item in items if isinstance(item, dict) and "_target_" not in item]
    for key, node in _targets(values):
        name = node["_target_"]
        if may_build(name, key):
            handed = {"_target_", INIT} if key == "model." else {"_target_"}
            settings = {name: value for name, value in node.items() if name not in handed}
            found += problems(settings, locate(name), prefix=key, handed_in=_handed_in(name, key))
        else:
            found.append(f"{key}_target_={name!r}: {unlisted(name)}")
    if found:
        raise InputError("\n  ".join(["the config is wrong:", *found]) if len(found) > 1 else found[0])
    return values


def unlisted(name: object) -> str:
    """Word that a target is not on the list, with the nearest that is, or how to name code of one's own."""
    module = str(name).rpartition(".")[0]
    near = nearest(str(name), [*TARGETS, *library_classes.targets(), *extensions.targets()])
    own = not near and all(map(str.isidentifier, module.split("."))) and not module.startswith("xray_pneumonia")
    if extension := extensions.owner(str(name)):
        near = f"; {extension.module.__file__} has {', '.join(extension.targets()) or 'none'}"
    elif own:
        near = f"; where it is code of your own, add extensions=[{module}] to the command"
    return f"{NOT_LISTED}{near}"


def _handed_in(name: str, key: str) -> list[str] | None:
    """List the parameters of a target of others that workflows hand in; None for a target of this package."""
    if name in TARGETS:
        return None
    group, target = key.partition(".")[0], locate(name)
    names = [*inspect.signature(target).parameters]
    if group == "loggers":
        return [name for name in names if name in library_classes.PLACES]
    if group in {"loss", "augmentation"} and inspect.isfunction(target):
        return names[:2]  # it is called with logits and labels, or image and generator, and not to build something
    if group == "scheduler":
        return names[: 1 + (names[1:2] == ["horizon"])]
    return names[: int(group == "optimizer" or (group == "loss" and names[:1] == ["counts"]))]


def may_build(name: object, key: str = "") -> bool:
    """Tell whether a `_target_` is on the list, or below a key of `OPEN` in a module that the command names.

    A list or mapping in its place is not.
    """
    if not isinstance(name, str):
        return False
    group = key.partition(".")[0]
    return (
        name in TARGETS or library_classes.lists(name, group) or (group in OPEN and extensions.find(name) is not None)
    )


def is_foreign(node: Node) -> bool:
    """Tell whether a node names a class or function of others."""
    return node["_target_"] not in TARGETS


def build(node: Node, *handed_in: Any, key: str = "") -> Any:
    """Build what a config group names; `handed_in` are the positional arguments that no config holds.

    Args:
        node: a config group, or what stands below one.
        handed_in: a class of others gets only as many of them as its signature takes.
        key: the group's, in which code of others may stand.

    Raises:
        InputError: anything in the node names a target that is not on the list, or is left to be looked up.
    """
    from hydra.utils import instantiate

    values = plain(node) if isinstance(node, DictConfig) else deepcopy(dict(node))
    if key in {"", "model"}:
        values.pop(INIT, None)
    for path, inner in _targets(values):
        if not may_build(inner["_target_"], key):
            raise InputError(f"{path}_target_={inner['_target_']!r}: {NOT_LISTED}")
        if inner is not values and inspect.isfunction(locate(inner["_target_"])):
            inner["_partial_"] = True  # a transform, to be called with images
    if "_target_" not in values:
        raise InputError(f"{key or 'a group'}={values}: lacks _target_, {BUILT}")
    if "${" in repr(values):
        raise InputError(f"{values['_target_']}: its values are built as they are; nothing is looked up: {values}")
    name, count = values["_target_"], None
    if is_foreign(values):
        count = len(_handed_in(name, key) or [])
        if key == "loss" and name.startswith("torch."):
            import torch

            values |= {name: torch.tensor(float(values[name])) for name in ("pos_weight", "weight") if name in values}
    try:
        made = instantiate(values, _partial_=True, _convert_="all")
        return made if key == "loss" and inspect.isfunction(locate(name)) else made(*handed_in[:count])
    except InputError:
        raise
    except Exception as error:  # of a constructor of others
        if not is_foreign(values):
            raise
        raise InputError(f"{key}._target_={name}: cannot be built: {type(error).__name__}: {error}") from error


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


def drop_replaced(cfg: DictConfig, overrides: Iterable[str]) -> None:
    """Drop what a group's file sets where the command names another class than its: `model._target_=my_models.Net`.

    What the command sets as well remains.
    """
    asked = [override.lstrip("+").partition("=")[0] for override in overrides]
    for key in asked:
        group, _, last = key.rpartition(".")
        node = OmegaConf.select(cfg, group) if last == "_target_" and group in OPEN else None
        if not isinstance(node, DictConfig) or not is_foreign(node):
            continue
        with open_dict(cfg):
            for name in set(map(str, node)) - {each.split(".")[1] for each in asked if each.startswith(f"{group}.")}:
                del node[name]


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
    """Import what a target on the list names, or find it in the modules of the command."""
    if extension := extensions.find(name):
        return extension
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)  # type: ignore[no-any-return]
