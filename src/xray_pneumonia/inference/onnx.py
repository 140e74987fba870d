"""Exports models to ONNX and reads them back: one file that maps raw pixels to calibrated probabilities.

The input is `pixels`, uint8 (B, 1, S, S) with any B; the outputs are `probability` and `logit`, both calibrated, (B,)
in double precision, and `distance`, which a gate that measures features compares with its limit. Scaling,
normalisation, calibration and sigmoid are in the graph; the card and the limit are in its metadata.
"""

import copy
import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.input_gate import FeatureGate
from xray_pneumonia.inference.bundle import MAX_BYTES, Card, parse_card, require_plain
from xray_pneumonia.inference.graph_process import GraphProcess
from xray_pneumonia.inference.model import CPU_BATCH, Graph, TrainedModel, in_batches
from xray_pneumonia.models.features import FeatureNet
from xray_pneumonia.types import Gray, Vector

GRAPH = "model.onnx"  # in the folder of the weights
INPUT, OUTPUTS, DISTANCE = "pixels", ["probability", "logit"], "distance"
PREPROCESSING = (  # of films by other programs, in words
    "8-bit gray, 0 black, not scaled; upright by EXIF; squashed to {side} x {side} with Pillow: a JPEG is opened by "
    "Image.draft(mode, ({double}, {double})), then Image.resize(({side}, {side}), Image.Resampling.BILINEAR), which "
    "takes the mean of all pixels it covers (antialiasing); a plain bilinear resize gives other answers"
)
CURE = "pip install 'xray-pneumonia[onnx]'"


class _Measured(nn.Module):
    """A net with the distance of its features; 0 where its gate asks for none."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        self.net = FeatureNet(copy.deepcopy(model.require_net()), side=model.card.image_size)
        self.centre, self.matrix = nn.Buffer(torch.zeros(0)), nn.Buffer(torch.zeros(0, 0))
        if isinstance(model.gate, FeatureGate):
            self.centre = nn.Buffer(torch.from_numpy(model.gate.centre))
            self.matrix = nn.Buffer(torch.from_numpy(model.gate.matrix).float())  # exact, and half the bytes

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logit, features = self.net(pixels)
        apart = features[:, : len(self.centre)].double() - self.centre
        return logit.double(), (apart @ self.matrix.double()).square().sum(dim=1)


class _Evidence(nn.Module):
    """A model's nets and the linear map to its evidence, as one module."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        members = [_Evidence(member) for member in model.members]
        self.parts = nn.ModuleList(members or [_Measured(model)])
        self.temperature, self.bias = model.card.temperature, model.card.bias

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits, distances = zip(*(part(pixels) for part in self.parts), strict=True)
        return torch.stack(logits).mean(dim=0) / self.temperature + self.bias, torch.stack(distances).mean(dim=0)


class _Answer(nn.Module):
    """Calibrated probabilities and logits, and distances for a gate that asks for them."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        self.inner, self.offset = _Evidence(model), model.calibration.offset
        self.measures = isinstance(model.gate, FeatureGate)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        evidence, distance = self.inner(pixels)
        logit = evidence + self.offset
        return (torch.sigmoid(logit), logit, distance) if self.measures else (torch.sigmoid(logit), logit)


def write_graph(model: TrainedModel, path: Path) -> None:
    """Write a model, or an ensemble, as one graph.

    Raises:
        InputError: the packages that write graphs are not installed.
    """
    require_writer()
    side = model.card.image_size
    example = torch.zeros(2, 1, side, side, dtype=torch.uint8)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the exporter logs its own progress
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                _Answer(model).eval().cpu(),
                (example,),
                dynamo=True,
                dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
                input_names=[INPUT],
                output_names=[*OUTPUTS, DISTANCE] if isinstance(model.gate, FeatureGate) else OUTPUTS,
                verbose=False,
            )
    finally:
        logging.disable(before)
    for node in program.model.graph.all_nodes():  # they name the files of this machine
        node.metadata_props.clear()
    program.model.metadata_props.update(_metadata(model))
    program.save(path, external_data=False)


def read_graph(path: Path) -> tuple[Card, Graph, bool]:
    """Read a graph that `write_graph` wrote, and have it answer for one image.

    Returns:
        The card, what computes, and whether it measures distances, which are 0 where it does not.

    Raises:
        InputError: the file is missing, damaged or no such graph, exceeds a limit, or onnxruntime is not installed.
    """
    require_reader()
    try:
        require_plain(path, most=MAX_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a graph: {error.strerror}") from error
    process = GraphProcess(path, wanted=[OUTPUTS[1], DISTANCE], threads=torch.get_num_threads())
    try:
        card = parse_card(process.card, name=str(path))
        if json.loads(process.labels) != card.class_names:
            raise InputError(f"{path}: its labels are not those of its card; export the model again")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: holds no card of a model: {error}") from error
    _require_shapes(process, card, path)
    process.run(np.zeros((1, card.image_size, card.image_size), np.uint8))  # whatever does not end is found now
    measures = DISTANCE in process.outputs

    def compute(images: Gray) -> Vector:
        found = in_batches(process.run, images, CPU_BATCH).reshape(len(images), 1 + measures)
        return found if measures else np.column_stack([found, np.zeros(len(images))])

    return card, compute, measures


def require_writer() -> None:
    """Raise InputError unless the packages which write graphs are installed."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} is not installed, and writing graphs needs it: {CURE}") from error


def require_reader() -> None:
    """Raise InputError unless the package which reads graphs is installed."""
    if find_spec("onnxruntime") is None:
        raise InputError(f"onnxruntime is not installed, and reading graphs needs it: {CURE}")


def _require_shapes(process: GraphProcess, card: Card, path: Path) -> None:
    side = card.image_size
    if process.inputs != [[INPUT, "tensor(uint8)", [1, side, side]]] or process.outputs not in (
        OUTPUTS,
        [*OUTPUTS, DISTANCE],
    ):
        raise InputError(
            f"{path}: takes {process.inputs} and gives {process.outputs}; a graph of this project takes {INPUT}, "
            f"{OUTPUTS}"
        )


def _metadata(model: TrainedModel) -> dict[str, str]:
    """Describe the answers: the card, and what other programs look for."""
    card, gate = model.card, model.gate
    known = {"gate": json.dumps({"output": DISTANCE, "limit": gate.limits[0]})} if isinstance(gate, FeatureGate) else {}
    return known | {
        "card": json.dumps(card.values()),
        "labels": json.dumps(card.class_names),
        "image_size": str(card.image_size),
        "preprocessing": PREPROCESSING.format(side=card.image_size, double=2 * card.image_size),
        "operating_point": repr(card.operating_point),
        "prevalence": json.dumps(card.prevalence),
        "band": json.dumps(card.band),
    }
