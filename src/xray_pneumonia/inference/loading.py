"""Files -> readers: a bundle, an ensemble or an exported graph, and the engine that computes."""

import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
from scipy.special import expit

from xray_pneumonia.errors import InputError
from xray_pneumonia.inference.bundle import Card
from xray_pneumonia.inference.bundles import Bundle, open_bundle, open_gate
from xray_pneumonia.inference.engines import torch_engine
from xray_pneumonia.inference.ensemble import ENSEMBLE, open_ensemble
from xray_pneumonia.inference.model import Engine, Gray, Reader, Vector
from xray_pneumonia.inference.onnx import GRAPH, can_read_graphs, read_graph, write_graph

EngineName = Literal["auto", "torch", "onnx"]
TOLERANCE = 1e-4  # of probabilities, between engines
log = logging.getLogger(__name__)


def open_reader(place: Path, *, name: str, engine: EngineName) -> Reader:
    """Open a folder with a bundle or an ensemble, or an exported `.onnx` file.

    Args:
        place: the folder or file; input like any other.
        name: what to call the model.
        engine: `onnx` makes the graph where none lies beside the weights; `auto` takes one that is there,
            unless a GPU is, and torch otherwise.

    Raises:
        InputError: a file is missing, damaged or altered, or a package is missing.
    """
    if place.is_file():
        return _open_graph(place, name=name, engine=engine)
    bundle = open_folder(place, name=name)
    return Reader(name, bundle.card, bundle.gate, bundle.net, _choose(bundle, engine))


def open_folder(folder: Path, *, name: str) -> Bundle:
    """Open a bundle or an ensemble, whichever the folder holds.

    Raises:
        InputError: a file is missing, damaged or altered.
    """
    return (open_ensemble if (folder / ENSEMBLE).exists() else open_bundle)(folder, name=name)


def probes(side: int) -> Gray:
    """Draw images at the edges of what can come: (8, S, S).

    Dark, bright, black beside white, a gradient, a checkerboard, noise. None is nearly of one gray:
    the decoder refuses one gray, and a net that standardises each image blows the rounding of its mean up.
    """
    rng = np.random.default_rng(0)
    half = np.broadcast_to(np.arange(side) < side // 2, (side, side))
    two_levels = [np.where(half, dark, bright) for dark, bright in ((0, 32), (223, 255), (0, 255))]
    ramp = np.broadcast_to(np.linspace(0, 255, side), (side, side))
    board = np.indices((side, side)).sum(axis=0) % 2 * 255
    noise = [rng.integers(0, 256, (side, side)), *rng.normal(128, 30, (2, side, side)).clip(0, 255)]
    return np.stack([*two_levels, ramp, board, *noise]).astype(np.uint8)


def farthest(one: Engine, other: Engine, pixels: Gray) -> float:
    """Give the largest distance between two engines' probabilities on (N, S, S) images."""
    return float(np.abs(expit(one(pixels)) - expit(other(pixels))).max())


def _open_graph(path: Path, *, name: str, engine: EngineName) -> Reader:
    if engine == "torch":
        raise InputError(f"engine=torch: {path} is an exported graph, which onnxruntime reads; leave engine=auto")
    card, run = read_graph(path)
    return Reader(name, card, open_gate(path.parent), None, run)


def _choose(bundle: Bundle, engine: EngineName) -> Engine:
    """Take the fastest engine that gives equal results."""
    plain = torch_engine(bundle.answer)
    if engine == "torch" or (engine == "auto" and (torch.cuda.is_available() or not can_read_graphs())):
        return plain
    graph = _graph_beside(bundle)
    if graph is None and engine == "auto":
        return plain
    graph = graph or _graph_made(bundle)
    apart = farthest(plain, graph, probes(bundle.card.image_size))
    if apart <= TOLERANCE:  # NaN is not
        return graph
    if engine == "onnx":
        raise InputError(f"engine=onnx: {bundle.folder}: its graph is {apart:.2g} off its weights; export it anew")
    log.warning("%s: its graph is %.2g off its weights, so torch computes; export it anew", bundle.name, apart)
    return plain


def _graph_beside(bundle: Bundle) -> Engine | None:
    """Open the graph that lies beside the weights, or those of all members of an ensemble."""
    if (bundle.folder / GRAPH).is_file():
        card, run = read_graph(bundle.folder / GRAPH)
        if card != bundle.card:
            log.warning("%s: its %s is that of another model; it is not used", bundle.folder, GRAPH)
            return None
        return run
    parts = [_graph_beside(member) for member in bundle.members]
    engines = [part for part in parts if part is not None]
    return _mean(engines, bundle.card) if engines and len(engines) == len(parts) else None


def _mean(engines: Sequence[Engine], card: Card) -> Engine:
    def run(pixels: Gray) -> Vector:
        logits = np.column_stack([engine(pixels) for engine in engines]).mean(axis=1)
        return np.asarray(logits / card.temperature + card.bias, np.float64)

    return run


def _graph_made(bundle: Bundle) -> Engine:
    with TemporaryDirectory() as folder:
        write_graph(bundle, Path(folder) / GRAPH)
        return read_graph(Path(folder) / GRAPH)[1]
