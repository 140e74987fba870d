"""Stored configs: input that anybody with access to a store may have written, read as plain values or not at all.

Every config that comes from a run, a bundle or another folder than the package's goes through `load_stored`.
"""

import hashlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xray_pneumonia.config import TARGETS, Node, check
from xray_pneumonia.errors import InputError
from xray_pneumonia.schema import nearest

SCHEMA = 1  # raise it when a key changes its meaning or goes away, and refuse or mend older ones in `_migrated`
MAX_BYTES = 2**20
MAX_DEPTH = 20
MAX_NODES = 10_000
NETS = "xray_pneumonia.models."
# Keys that came after the first configs were stored, by the target that takes them, with the value that means
# what was done before; "" is the whole config.
MEANT_BEFORE: dict[str, dict[str, Any]] = {
    "": {},
    "xray_pneumonia.data.augment.Augmentation": {
        "engine": "albumentations",
        "device": "cpu",
        "equalise": 0,
        "sharpen": 0,
        "shrink": 0,
    },
    "xray_pneumonia.data.datamodule.XRayDataModule": {"progressive": None, "resident": "never"},
    "xray_pneumonia.models.resnet.ResNet": {"per_image": False},
    "xray_pneumonia.tracking.store.TrackingSettings": {"required": False},
    "xray_pneumonia.training.optimizers.adamw": {"fused": False},
    "xray_pneumonia.training.optimizers.rmsprop": {"fused": False},
    "xray_pneumonia.training.optimizers.sgd": {"fused": False},
    "xray_pneumonia.training.trainer.TrainerSettings": {
        "checkpoint_minutes": 10,
        "checkpoint_steps": None,
        "compile": False,
        "keep": "best",
    },
}
HEADER = ("schema", "version")
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
        InputError: it is no plain YAML, it was altered, it is of another schema, or it names what it may not.
    """
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    try:
        return _loaded(raw, origin=origin, sha256=sha256)
    except InputError as error:
        log.warning("a stored config was refused: %r", str(error))  # whatever characters it holds
        raise


def _loaded(raw: bytes, *, origin: str, sha256: str | None) -> DictConfig:
    if len(raw) > MAX_BYTES:
        raise InputError(f"{origin}: its config has {len(raw)} bytes, over {MAX_BYTES}; no training of ours wrote it")
    if sha256 is not None and hashlib.sha256(raw).hexdigest() != sha256:
        raise InputError(
            f"{origin}: its config is not the one it was trained with (sha256 {hashlib.sha256(raw).hexdigest()[:12]}, "
            f"recorded {sha256[:12]}); an altered config is not run"
        )
    try:
        text = raw.decode("utf-8")
        require_plain_yaml(text, origin=origin)
        cfg = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{origin}: its config is no plain YAML: {' '.join(str(error).split())}") from error
    if not isinstance(cfg, DictConfig):
        raise InputError(f"{origin}: its config is a list, expected keys and values")
    values: Any = OmegaConf.to_container(cfg, resolve=False)
    if not values:
        raise InputError(f"{origin}: its config is empty")
    require_safe(values, origin=origin)
    return OmegaConf.create(_migrated(values, origin=origin))


def check_net(net: Any, *, origin: str) -> dict[str, Any]:
    """Check the net that a bundle's card names: one of this package's, with arguments that its signature takes.

    Args:
        net: what the card says, of whatever type.
        origin: the file, for messages.

    Returns:
        The same, ready to be built.

    Raises:
        InputError: it names anything but a net of this package, or arguments that it does not take.
    """
    require_safe(net, origin=origin)
    if not isinstance(net, dict) or not str(net.get("_target_")).startswith(NETS):
        raise InputError(f"{origin}: net names no net of this package: {str(net)[:200]}")
    try:
        check(OmegaConf.create({"model": net}), NetConfig)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from error
    return net


def require_plain_yaml(text: str, *, origin: str) -> None:
    """Walk YAML's events, before any value is made of them.

    Raises:
        InputError: aliases, tags, tabs, a byte-order mark, several documents, or too deep or too many nodes.
    """
    odd = FORBIDDEN.search(text)
    if odd:
        line = text.count("\n", 0, odd.start()) + 1
        raise InputError(f"{origin}: its config holds the character {odd.group()!r} in line {line}")
    depth = nodes = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        nodes += isinstance(event, yaml.NodeEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        what = _unwanted(event)
        if depth > MAX_DEPTH or nodes > MAX_NODES or documents > 1:
            what = f"more than {MAX_DEPTH} levels, {MAX_NODES} values or one document"
        if what:
            raise InputError(f"{origin}: its config holds {what} in line {event.start_mark.line + 1}")


def _unwanted(event: yaml.Event) -> str:
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        return "an alias"
    if getattr(event, "tag", None):
        return f"the tag {event.tag}"
    return "a merge key" if isinstance(event, yaml.ScalarEvent) and event.value == "<<" else ""


def require_safe(tree: Any, *, origin: str) -> None:
    """Walk a tree of plain values: exact targets from the list in the code, and nothing that is looked up later.

    Raises:
        InputError: a target that is not on the list, an interpolation, a key of Hydra's, or a value of another type.
    """
    for path, value in _walk(tree, origin=origin):
        key = ".".join(map(str, path))
        name = path[-1] if path else ""
        if name == "_target_":
            if not isinstance(value, str) or value not in TARGETS:
                hint = nearest(str(value), TARGETS)
                raise InputError(f"{origin}: {key}={value!r}: not on the list of what a config may build{hint}")
        elif name == "hydra" or (isinstance(name, str) and name.startswith("_")):
            raise InputError(f"{origin}: {key}: keys of Hydra's have no place in a stored config")
        if any(isinstance(part, str) and ("${" in part or part == "???") for part in (name, value)):
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
    schema, wrote = (values.pop(name, default) for name, default in zip(HEADER, (0, "before 0.1.0"), strict=True))
    if not isinstance(schema, int) or not 0 <= schema <= SCHEMA:
        raise InputError(
            f"{origin}: its config has schema {schema} (xray-pneumonia {wrote}); xray-pneumonia "
            f"{version('xray-pneumonia')} reads schemas up to {SCHEMA}; install the version that wrote it"
        )
    for _, node in [*_walk(values, origin=origin)]:
        if isinstance(node, dict):
            name = "" if node is values else str(node.get("_target_", "none"))
            node.update({key: meaning for key, meaning in MEANT_BEFORE.get(name, {}).items() if key not in node})
    return values
