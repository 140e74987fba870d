"""Bundles opened: files -> a net that answers, its card and gate; one model, or several that answer as one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from xray_pneumonia.config import build
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.input_gate import MOST_BYTES, Gate
from xray_pneumonia.inference.bundle import CARD, Card, read_bundle, require_plain
from xray_pneumonia.inference.calibrated import Calibrated
from xray_pneumonia.stored_config import check_net
from xray_pneumonia.training import performance
from xray_pneumonia.types import CLASSES

GATE = "gate.npz"  # beside weights and card


@dataclass(frozen=True)
class Bundle:
    """A trained model, or several that answer as one.

    `answer` maps raw pixels (B, 1, S, S) to calibrated logits (B,). `net`, whose heat maps are drawn, gives
    its own; of several models, the `members`, it is the first's.
    """

    name: str
    folder: Path
    card: Card
    gate: Gate | None
    net: nn.Module
    answer: Calibrated
    members: tuple["Bundle", ...] = ()


def open_bundle(folder: Path, *, name: str) -> Bundle:
    """Open a folder with `model.safetensors`, `model.json` and, for most, `gate.npz`.

    Args:
        folder: that holds the files; they are input like any other.
        name: what to call the model.

    Raises:
        InputError: a file is missing, damaged or altered, or the weights do not fit the net.
    """
    card, weights = read_bundle(folder)
    require_classes(card, name=str(folder / CARD))
    gate = open_gate(folder)
    net = _net(card.net, weights, name=str(folder))
    return Bundle(name, folder, card, gate, net, calibrated(net, card))


def open_gate(folder: Path) -> Gate | None:
    """Open the gate of a folder; None where there is none.

    Raises:
        InputError: it is damaged.
    """
    path = folder / GATE
    return Gate.read(require_plain(path, most=MOST_BYTES)) if path.exists() else None


def calibrated(net: nn.Module, card: Card) -> Calibrated:
    """Put a card's calibration behind a net."""
    return Calibrated(net, temperature=card.temperature, bias=card.bias).eval()


def require_classes(card: Card, *, name: str) -> None:
    """Refuse a model that tells other things apart.

    Raises:
        InputError: its classes are others, or in another order.
    """
    if card.class_names != list(CLASSES):
        raise InputError(f"{name}: class_names={card.class_names}; this version knows {list(CLASSES)}, in this order")


def _net(node: Mapping[str, Any], weights: Mapping[str, Tensor], *, name: str) -> nn.Module:
    """Build the net a card names around its weights; nothing is drawn, downloaded or larger than the weights."""
    node = dict(check_net(dict(node), origin=name))
    if "pretrained" in node:
        node["pretrained"] = False  # its weights are here
    try:
        with torch.device("meta"), _no_larger_than(weights):  # shapes alone
            net: nn.Module = build(node)
        _require_fitting(net, weights)
        net = net.to_empty(device="cpu")
        net.load_state_dict(weights)
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{name}: its weights do not fit its net: {' '.join(str(error).split())}") from error
    return performance.lay_out(net, channels_last=True).eval().requires_grad_(False)


@contextmanager
def _no_larger_than(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Stop the making of a net, however many layers its card asks for, that these weights can never fill."""
    most = 2 * len(weights) + 100  # a net from torchvision has its ends replaced
    made = 0

    def count(*_: Any) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise ValueError(f"it asks for over {most} tensors, there are {len(weights)}")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _require_fitting(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    expected = net.state_dict()
    strange = sorted(expected.keys() ^ weights.keys())
    if strange:
        where = "lacks" if strange[0] in expected else "has no place for"
        raise ValueError(f"{where} {strange[0]} ({len(strange)} such)")
    for key, tensor in weights.items():
        if tensor.shape != expected[key].shape or tensor.dtype != expected[key].dtype:
            raise ValueError(
                f"{key} is {tensor.dtype} {tuple(tensor.shape)}, should be {expected[key].dtype} "
                f"{tuple(expected[key].shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{key} holds what is no finite number")
