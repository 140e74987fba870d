"""Read configs of runs and bundles, which anybody with access to a store may have written: plain values or nothing.

Every config that comes from a run, a bundle or another folder than the package's goes through `load_stored`.
"""

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader

from xray_pneumonia import extensions
from xray_pneumonia.config import PACKAGE, Node, check, groups, may_build, unlisted
from xray_pneumonia.errors import InputError

SCHEMA = 1  # raise it when a key changes its meaning or goes away; `_migrated` refuses or translates older ones
MAX_BYTES = 2**20
MAX_DEPTH = 20
MAX_NODES = 10_000
NETS = "xray_pneumonia.models."
KEYS = {"abstention_error": "max_error"}  # of `EvaluationSettings`, old to new: of each class then, of the answers now
RENAMED = {"xray_pneumonia.data.decoding.Limits": "xray_pneumonia.data.images.sandbox.Limits"}  # targets, old to new
# Keys that came after the first configs were stored, by the target that takes them, with the value that means
# what was done before; "" is the whole config.
MEANT_BEFORE: dict[str, dict[str, Any]] = {
    "": {"extensions": {}, "callbacks": [], "loggers": []},
    "xray_pneumonia.data.augment.Augmentation": {"engine": "albumentations", "device": "cpu", "transforms": []}
    | dict.fromkeys(("equalise", "sharpen", "shrink"), 0),
    "xray_pneumonia.data.datamodule.XRayDataModule": {
        "follow_links": False,
        "progressive": None,
        "resident": "never",
        "positive": ["PNEUMONIA"],
        "negative": ["NORMAL"],
        "patient": None,
        "corrections": None,
    },
    "xray_pneumonia.evaluation.settings.EvaluationSettings": {"out_of_fold": []},
    "xray_pneumonia.models.resnet.ResNet": {"per_image": False},
    "xray_pneumonia.tracking.store.TrackingSettings": {"required": False},
    "xray_pneumonia.training.optimizers.adamw": {"fused": False},
    "xray_pneumonia.training.optimizers.rmsprop": {"fused": False},
    "xray_pneumonia.training.optimizers.sgd": {"fused": False},
    "xray_pneumonia.training.trainer.TrainerSettings": {"checkpoint_minutes": 10, "checkpoint_steps": None}
    | {"compile": False, "freeze": [], "backbone_lr": 1.0, "keep": "best"},
}
REFERENCE = re.compile(r"\$\{[\w.]+\}")
PACKAGE_LINE = re.compile(rb"^#\s*@package\s", re.MULTILINE)
FORBIDDEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\ufeff\u0085\u2028\u2029]")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NetConfig:
    """The part of a card that names a net."""

    model: Node


def stored_text(cfg: DictConfig) -> str:
    """Write a checked config as it is kept with a run: resolved, headed by its schema and this version."""
    header = {"schema": SCHEMA, "version": version("xray-pneumonia")}
    return OmegaConf.to_yaml(OmegaConf.create(header)) + OmegaConf.to_yaml(cfg, resolve=True)


def load_stored(text: str | bytes, *, origin: str, sha256: str | None = None) -> DictConfig:
    """Read a stored config; nothing it names is imported, resolved or looked up.

    Args:
        text: the YAML, byte for byte.
        origin: what to call it in messages: `run_id=...` or a file.
        sha256: what its bytes must hash to, 64 hex digits; None where nothing recorded it.

    Returns:
        Plain values in the keys of the present schema, still to be checked against the workflow's class.

    Raises:
        InputError: it is no plain YAML, was altered, is of another schema, or names what it may not or code to import.
    """
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    try:
        values = _read(raw, origin=origin, sha256=sha256)
        _forget_store(values)
        extensions.require(values.get("extensions", {}), origin=origin)
        require_safe(values, origin=origin, modules=values.get("extensions", {}))
        return OmegaConf.create(_migrated(values, origin=origin))
    except InputError as error:
        log.warning("a stored config was refused: %r", str(error))  # whatever characters it holds
        raise


def _forget_store(values: dict[str, Any]) -> None:
    """Drop a store that was looked up in the environment: whoever takes up the config names the store anew."""
    tracking = values.get("tracking")
    if isinstance(tracking, dict) and "${oc.env:" in str(tracking.get("uri")):
        tracking["uri"] = None


def _read(raw: bytes, *, origin: str, sha256: str | None) -> dict[str, Any]:
    if len(raw) > MAX_BYTES:
        raise InputError(f"{origin}: its config has {len(raw)} bytes, over {MAX_BYTES}; no training of ours wrote it")
    found = hashlib.sha256(raw).hexdigest()
    if sha256 not in {None, found}:
        raise InputError(
            f"{origin}: its config is not the one it was trained with (sha256 {found[:12]}, recorded "
            f"{str(sha256)[:12]}); an altered config is not run"
        )
    try:
        values = read_plain_yaml(raw.decode("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{origin}: its config is no plain YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not values:
        raise InputError(f"{origin}: its config holds no keys and values")
    return values


def check_experiment(raw: bytes, *, origin: str, folders: Sequence[Path] = ()) -> None:
    """Check an experiment file from outside the package before Hydra composes it; `folders` hold choices of its user.

    Raises:
        InputError: it is no plain YAML, is too large, chooses groups that are not the package's, configures Hydra
            itself, names a target that is not on the list, or looks up more than other keys.
    """
    values = _read(raw.replace(b"\r\n", b"\n"), origin=origin, sha256=None)
    known, places = groups(), [resources.files(PACKAGE), *folders]
    if not isinstance(defaults := values.pop("defaults", []), list):
        raise InputError(f"{origin}: defaults={defaults!r}: should be a list")
    for item in defaults:
        group, choice = next(iter(item.items())) if isinstance(item, dict) and len(item) == 1 else ("experiment", item)
        name = str(group).removeprefix("override ").removeprefix("/")
        files = "" if choice is None or choice == "_self_" else f"{name}/{choice}.yaml"
        if name not in known or (files and not any((place / files).is_file() for place in places)) or ".." in files:
            there = f"its groups are {', '.join(known)}"
            raise InputError(f"{origin}: defaults: {item!r}: names no choice of the package; {there}")
    if values and not PACKAGE_LINE.search(raw):
        raise InputError(f"{origin}: lacks the line `# @package _global_` at its start, without which no key is found")
    if "extensions" in values:
        raise InputError(f"{origin}: extensions: code is named on the command line alone: extensions=[my_models]")
    require_safe(values, origin=origin, references=True)


def check_net(net: Any, *, origin: str) -> dict[str, Any]:
    """Check the net that a bundle's card names: one of this package's, with arguments that its signature takes.

    Returns:
        The same, ready to be built.

    Raises:
        InputError: it names anything but a net of this package, or arguments that it does not take.
    """
    require_safe({"model": net}, origin=origin)
    if not isinstance(net, dict) or not _is_net(net):
        raise InputError(f"{origin}: net names no net of this package: {str(net)[:200]}")
    try:
        check(OmegaConf.create({"model": net}), NetConfig)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from error
    return dict(net)


def _is_net(node: Mapping[str, Any]) -> bool:
    """Tell whether a node names a net of this package around nothing but such nets, or one of the user's own."""
    target, inner = str(node.get("_target_")), [one for one in node.values() if isinstance(one, dict)]
    return (target.startswith(NETS) and all(map(_is_net, inner))) or extensions.find(target) is not None


class _PlainLoader(get_yaml_loader()):  # type: ignore[misc]
    """Reads YAML as OmegaConf does, and refuses anchors, aliases, tags and merges before any value is made."""

    depth = nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        self.nodes += 1
        self.depth += 1
        what = ""
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            what = "an alias"
        elif event.tag:
            what = f"the tag {event.tag}"
        elif isinstance(event, yaml.ScalarEvent) and event.value == "<<":
            what = "a merge key"
        elif self.depth > MAX_DEPTH or self.nodes > MAX_NODES:
            what = f"more than {MAX_DEPTH} levels or {MAX_NODES} values"
        if what:
            raise yaml.YAMLError(f"it holds {what} in line {event.start_mark.line + 1}")
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_plain_yaml(text: str) -> Any:
    """Read one document of scalars, lists and mappings.

    Raises:
        YAMLError: aliases, tags, tabs, a byte-order mark, several documents, or too deep or too many nodes.
        ValueError: a number that Python does not read.
    """
    if odd := FORBIDDEN.search(text):
        line = text.count("\n", 0, odd.start()) + 1
        cure = "; indent with spaces" if odd.group() == "\t" else ""
        raise yaml.YAMLError(f"it holds the character {odd.group()!r} in line {line}{cure}")
    return _PlainLoader(text).get_single_data()


def require_safe(tree: Any, *, origin: str, references: bool = False, modules: Mapping[str, str] | None = None) -> None:
    """Walk a tree of plain values: exact targets from the list in the code, and nothing that is looked up later.

    Args:
        tree: of dicts, lists and scalars.
        origin: what to call it in messages.
        references: allow `${another.key}`; resolvers such as `${oc.env:HOME}` never are.
        modules: of the user's own that it was written with; None for any that the command names.

    Raises:
        InputError: a target that is not on the list, an interpolation, a key of Hydra's, or a value of another type.
    """
    for path, value in _walk(tree, origin=origin):
        key = ".".join(map(str, path))
        name = path[-1] if path else ""
        if name == "_target_":
            if not may_build(value, key) and value not in [*RENAMED]:
                raise InputError(f"{origin}: {key}={value!r}: {unlisted(value)}")
            if (extension := extensions.owner(str(value))) and modules is not None and extension.name not in modules:
                raise InputError(f"{origin}: {key}={value!r}: is of a module that it was not written with")
        elif name == "hydra" or (isinstance(name, str) and name.startswith("_")):
            raise InputError(f"{origin}: {key}: keys of Hydra's have no place in a stored config")
        texts = [part for part in (name, value) if isinstance(part, str)]
        if any("\0" in part for part in texts):
            raise InputError(f"{origin}: {key}={value!r}: holds a null byte, which no path or name does")
        if references:
            texts = [REFERENCE.sub("", part) for part in texts]
        if any("${" in part or part == "???" for part in texts):
            raise InputError(f"{origin}: {key}={value!r}: a stored config is resolved; nothing in it is looked up")


def _walk(tree: Any, path: tuple[Any, ...] = (), *, origin: str) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield every node with its keys from the root; refuses what is no JSON and what is too deep."""
    if len(path) > MAX_DEPTH:
        raise InputError(f"{origin}: {'.'.join(map(str, path[:3]))}...: more than {MAX_DEPTH} levels")
    yield path, tree
    if isinstance(tree, dict):
        for key, value in tree.items():
            if not isinstance(key, str):
                raise InputError(f"{origin}: {'.'.join(map(str, (*path, key)))}: keys are text")
            yield from _walk(value, (*path, key), origin=origin)
    elif isinstance(tree, list):
        for position, value in enumerate(tree):
            yield from _walk(value, (*path, position), origin=origin)
    elif not isinstance(tree, str | int | float | bool | None):
        raise InputError(f"{origin}: {'.'.join(map(str, path))}: a {type(tree).__name__} has no place in a config")


def _migrated(values: dict[str, Any], *, origin: str) -> dict[str, Any]:
    """Bring a config to the present schema; those written before schemas were counted are of schema 0."""
    schema, wrote = values.pop("schema", 0), values.pop("version", "before 0.1.0")
    if not isinstance(schema, int) or not 0 <= schema <= SCHEMA:
        raise InputError(
            f"{origin}: its config has schema {schema} (xray-pneumonia {wrote}); xray-pneumonia "
            f"{version('xray-pneumonia')} reads schemas up to {SCHEMA}; install the version that wrote it"
        )
    for _, node in [*_walk(values, origin=origin)]:
        if not isinstance(node, dict):
            continue
        if node.get("_target_") in RENAMED:
            node["_target_"] = RENAMED[node["_target_"]]
        name = "" if node is values else node.get("_target_", "none")
        for old in KEYS.keys() & node.keys() if name.endswith(".EvaluationSettings") else ():
            node[KEYS[old]] = node.pop(old)
        node.update({key: meaning for key, meaning in MEANT_BEFORE.get(name, {}).items() if key not in node})
    return values
