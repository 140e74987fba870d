"""Loads trained models from files: a bundle, an ensemble or an exported graph; all of them are untrusted input."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from xray_pneumonia import extensions
from xray_pneumonia.config import build, is_foreign
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.input_gate import MOST_BYTES, FeatureGate, Gate, read_gate
from xray_pneumonia.inference.bundle import GATE, WEIGHTS, Card, read_bundle, require_plain
from xray_pneumonia.inference.ensemble import ENSEMBLE, read_ensemble, require_alike
from xray_pneumonia.inference.model import Graph, TrainedModel, ensemble_of
from xray_pneumonia.inference.onnx import GRAPH, read_graph, write_graph
from xray_pneumonia.models.features import FeatureNet
from xray_pneumonia.models.layers import as_logits, to_channels_last
from xray_pneumonia.stored_config import check_net
from xray_pneumonia.whole_files import file_sha256

log = logging.getLogger(__name__)
EngineName = Literal["auto", "torch", "onnx"]


def load_model(place: Path, *, name: str, engine: EngineName = "auto") -> TrainedModel:
    """Load a model from the folder of a bundle or an ensemble, or from an exported `.onnx` file.

    Args:
        place: the folder or file.
        name: what to call the model.
        engine: what computes: `auto` is torch for a folder and onnxruntime for a file; `onnx` exports a folder's model
            first.

    Raises:
        InputError: a file is missing, damaged or altered, or a package is missing.
    """
    if place.is_file():
        if engine == "torch":
            raise InputError(f"engine=torch: {place} is an exported graph, which onnxruntime reads; leave engine=auto")
        gate = _load_gate(place.parent)
        card, graph = _read_graph(place, gate)
        return TrainedModel(name, card, gate, graph=graph, folder=place.parent)
    model = (_load_ensemble if (place / ENSEMBLE).exists() else load_bundle)(place, name=name)
    if engine != "onnx":
        return model
    with TemporaryDirectory() as folder:
        write_graph(model, Path(folder) / GRAPH)
        return replace(model, graph=read_graph(Path(folder) / GRAPH)[1])


def load_bundle(folder: Path, *, name: str) -> TrainedModel:
    """Load a folder with `model.safetensors`, `model.json` and, for most, `gate.npz`.

    Raises:
        InputError: a file is missing, damaged or altered, or the weights do not fit the net.
    """
    card, weights = read_bundle(folder)
    gate = _load_gate(folder)
    if extensions.missing(card.extensions) and (folder / GRAPH).is_file():
        log.info("%s: computed by its graph; its code is used with extensions=%r", name, [*card.extensions])
        return TrainedModel(name, card, gate, graph=_read_own_graph(folder, card, gate), folder=folder)
    extensions.require(card.extensions, origin=name)
    net = _load_net(card.net, weights, name=str(folder))
    if isinstance(gate, FeatureGate):
        _require_features(net, gate, side=card.image_size, path=folder / GATE)
    return TrainedModel(name, card, gate, net, folder=folder)


def _require_features(net: nn.Module, gate: FeatureGate, *, side: int, path: Path) -> None:
    try:
        width = FeatureNet(net, side=side).width
    except RuntimeError as error:
        raise InputError(f"{path.parent}: its net takes no images of {side} pixels: {error}") from error
    if not 0 < width == gate.centre.size:
        raise InputError(f"{path}: knows {gate.centre.size} features, the net has {width}; fetch the model again")


def _read_graph(path: Path, gate: Gate | None) -> tuple[Card, Graph]:
    card, graph, measures = read_graph(path)
    if isinstance(gate, FeatureGate) and not measures:
        raise InputError(f"{path}: gives no distances, which {GATE} beside it asks for; export the model again")
    return card, graph


def _read_own_graph(folder: Path, card: Card, gate: Gate | None) -> Graph:
    """Read the graph that was exported from a bundle's weights."""
    exported, graph = _read_graph(folder / GRAPH, gate)
    if exported != card:
        raise InputError(f"{folder / GRAPH}: was not exported from the model of this folder; fetch the model again")
    return graph


def _load_ensemble(folder: Path, *, name: str) -> TrainedModel:
    card, places = read_ensemble(folder)
    members = []
    for place, sha256 in places.items():
        member = load_bundle(place, name=place.name)
        require_alike(member.card, card, origin=str(folder / ENSEMBLE), names=(place.name, "the ensemble"))
        if file_sha256(place / WEIGHTS) != sha256:
            raise InputError(
                f"{folder / ENSEMBLE}: the weights of {place.name} are not those it was made with; fetch the model "
                "again"
            )
        members.append(member)
    gate = _load_gate(folder)
    if isinstance(gate, FeatureGate) and not all(isinstance(member.gate, FeatureGate) for member in members):
        raise InputError(f"{folder / GATE}: asks for distances, and a member measures none; fetch the model again")
    return ensemble_of(members, card, name=name, gate=gate, folder=folder)


def _load_gate(folder: Path) -> Gate | None:
    path = folder / GATE
    return read_gate(require_plain(path, most=MOST_BYTES)) if path.exists() else None


def _load_net(node: Mapping[str, Any], weights: Mapping[str, Tensor], *, name: str) -> nn.Module:
    """Build the net a card names around its weights; nothing is drawn, downloaded or larger than the weights."""
    node = _without_download(check_net(dict(node), origin=name))
    foreign = is_foreign(node)
    try:
        with nullcontext() if foreign else _shapes_alone(weights):  # the command trusts code of others
            net: nn.Module = build(node, key="model")
        require_fitting(net, weights)
        net = as_logits(net) if foreign else net.to_empty(device="cpu")
        net.load_state_dict(weights)
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{name}: its weights do not fit its net: {' '.join(str(error).split())[:1000]}") from error
    torch.backends.cudnn.allow_tf32 = False  # a GPU's convolutions would keep 10 bits, and answers depend on the device
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return to_channels_last(net).eval().requires_grad_(False).to(device)


def _without_download(node: Mapping[str, Any]) -> dict[str, Any]:
    """Have a net, and those in it, fetch no weights: they are here."""
    inner = {key: _without_download(value) for key, value in node.items() if isinstance(value, Mapping)}
    return {**node, **inner, **({"pretrained": False} if "pretrained" in node else {})}


@contextmanager
def _shapes_alone(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Make no weights, and stop the making of a net, however many layers it has, that these can never fill."""
    most = 2 * len(weights) + 100  # a net from torchvision has its ends replaced
    made = 0

    def count(*_: Any) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise ValueError(f"it asks for over {most} tensors, there are {len(weights)}")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            yield
    finally:
        hook.remove()


def require_fitting(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless weights are finite and have the names, shapes and types of a net's."""
    expected = net.state_dict()
    differing = sorted(expected.keys() ^ weights.keys())
    if differing:
        problem = "lacks" if differing[0] in expected else "has no place for"
        raise ValueError(f"{problem} {differing[0]} ({len(differing)} such)")
    for key, tensor in weights.items():
        if tensor.shape != expected[key].shape or tensor.dtype != expected[key].dtype:
            raise ValueError(
                f"{key} is {tensor.dtype} {tuple(tensor.shape)}, should be {expected[key].dtype} "
                f"{tuple(expected[key].shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{key} holds what is no finite number")
