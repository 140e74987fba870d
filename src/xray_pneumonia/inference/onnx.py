"""Exports models to ONNX and reads them back: one file that maps raw pixels to calibrated probabilities.

The input is `pixels`, uint8 (B, 1, S, S) with any B; the outputs are `probability` and `logit`, both calibrated, (B,)
in double precision. Scaling, normalisation, calibration and sigmoid are in the graph; the card is in its metadata.
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
from xray_pneumonia.inference.bundle import MAX_BYTES, Card, parse_card, require_plain
from xray_pneumonia.inference.graph_process import GraphProcess
from xray_pneumonia.inference.model import CPU_BATCH, Graph, TrainedModel, in_batches

GRAPH = "model.onnx"  # in the folder of the weights
INPUT, OUTPUTS = "pixels", ["probability", "logit"]
CURE = "pip install 'xray-pneumonia[onnx]'"


class _Calibrated(nn.Module):
    """A model's nets with its calibration, as one module."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        members = [_Calibrated(member) for member in model.members]
        self.parts = nn.ModuleList(members or [copy.deepcopy(model.require_net())])
        self.temperature, self.bias = model.card.temperature, model.card.bias

    def forward(self, pixels: Tensor) -> Tensor:
        mean = torch.stack([part(pixels).double() for part in self.parts]).mean(dim=0)
        return mean / self.temperature + self.bias


class _Answer(nn.Module):
    """Calibrated probabilities and logits."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        self.logits = _Calibrated(model)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logit = self.logits(pixels)
        return torch.sigmoid(logit), logit


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
                output_names=OUTPUTS,
                verbose=False,
            )
    finally:
        logging.disable(before)
    for node in program.model.graph.all_nodes():  # they name the files of this machine
        node.metadata_props.clear()
    program.model.metadata_props.update(_metadata(model.card))
    program.save(path, external_data=False)


def read_graph(path: Path) -> tuple[Card, Graph]:
    """Read a graph that `write_graph` wrote, and have it answer for one image.

    Raises:
        InputError: the file is missing, damaged or no such graph, exceeds a limit, or onnxruntime is not installed.
    """
    require_reader()
    try:
        require_plain(path, most=MAX_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a graph: {error.strerror}") from error
    process = GraphProcess(path, output=OUTPUTS[1], threads=torch.get_num_threads())
    try:
        card = parse_card(process.card, name=str(path))
        if json.loads(process.labels) != card.class_names:
            raise InputError(f"{path}: its labels are not those of its card; export the model again")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: holds no card of a model: {error}") from error
    _require_shapes(process, card, path)
    process.run(np.zeros((1, card.image_size, card.image_size), np.uint8))  # whatever does not end is found now
    return card, lambda images: in_batches(process.run, images, CPU_BATCH)


def require_writer() -> None:
    """Check that the packages which write graphs are installed.

    Raises:
        InputError: one is not.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} is not installed, and writing graphs needs it: {CURE}") from error


def require_reader() -> None:
    """Check that the package which reads graphs is installed.

    Raises:
        InputError: it is not.
    """
    if find_spec("onnxruntime") is None:
        raise InputError(f"onnxruntime is not installed, and reading graphs needs it: {CURE}")


def _require_shapes(process: GraphProcess, card: Card, path: Path) -> None:
    side = card.image_size
    if process.inputs != [[INPUT, "tensor(uint8)", [1, side, side]]] or process.outputs != OUTPUTS:
        raise InputError(
            f"{path}: takes {process.inputs} and gives {process.outputs}; a graph of this project takes {INPUT}, "
            f"{OUTPUTS}"
        )


def _metadata(card: Card) -> dict[str, str]:
    """Describe the answers: the card, and what other programs look for."""
    return {
        "card": json.dumps(card.values()),
        "labels": json.dumps(card.class_names),
        "image_size": str(card.image_size),
        "operating_point": repr(card.operating_point),
        "band": json.dumps(card.band),
    }
