"""Exported graphs, the only door to ONNX: one file that eats raw pixels and gives calibrated probabilities.

Its input is `pixels`, uint8 (B, 1, S, S) with any B; its outputs are `probability` and `logit`, both
calibrated, (B,) in double precision. Scaling, normalisation, calibration and sigmoid are in the graph;
the card is in its metadata.
"""

import json
import logging
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xray_pneumonia.errors import InputError
from xray_pneumonia.inference.bundle import MOST_BYTES, Card, parse_card, require_plain
from xray_pneumonia.inference.bundles import Bundle, require_classes
from xray_pneumonia.inference.engines import SMALL_BATCH, in_batches
from xray_pneumonia.inference.model import Engine, Gray, Vector

GRAPH = "model.onnx"  # beside the weights
INPUT, OUTPUTS = "pixels", ["probability", "logit"]
CURE = "pip install 'xray-pneumonia[onnx]'"
log = logging.getLogger(__name__)


class _Answer(nn.Module):
    """Calibrated logits, and the probabilities they mean."""

    def __init__(self, logits: nn.Module) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logit = self.logits(pixels)
        return torch.sigmoid(logit), logit


def write_graph(bundle: Bundle, path: Path) -> None:
    """Write a model, or several that answer as one, as a graph.

    Raises:
        InputError: the packages that write graphs are not installed.
    """
    require_writer()
    side = bundle.card.image_size
    example = torch.zeros(2, 1, side, side, dtype=torch.uint8)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the exporter tells of its own parts
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                _Answer(bundle.answer).eval(),
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
    program.model.metadata_props.update(_metadata(bundle.card))
    program.save(path, external_data=False)


def read_graph(path: Path) -> tuple[Card, Engine]:
    """Open a graph that `write_graph` wrote.

    Raises:
        InputError: the file is missing, damaged or no such graph, or onnxruntime is not installed.
    """
    runtime = _runtime()
    try:
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting takes no one else's time
        # from bytes: a graph that wants data from other files gets none
        data = require_plain(path, most=MOST_BYTES).read_bytes()
        session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        card = parse_card(session.get_modelmeta().custom_metadata_map.get("card", "null"), name=str(path))
    except InputError:
        raise
    except Exception as error:  # the runtime has many kinds
        raise InputError(f"{path}: cannot be read as a graph: {' '.join(str(error).split())[:300]}") from error
    require_classes(card, name=str(path))
    _require_shapes(session, card, path)

    def run(batch: Gray) -> Vector:
        return np.asarray(session.run(OUTPUTS[1:], {INPUT: np.ascontiguousarray(batch)[:, None]})[0], np.float64)

    return card, in_batches(run, SMALL_BATCH)


def require_writer() -> None:
    """Check, before any work, that the packages which write graphs are there.

    Raises:
        InputError: one is not installed.
    """
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise InputError(f"{error.name} is not installed, and writing graphs needs it: {CURE}") from error
    log.debug("onnx %s, onnxscript %s", onnx.__version__, onnxscript.__version__)


def require_reader() -> None:
    """Check, before any work, that the package which reads graphs is there.

    Raises:
        InputError: it is not installed.
    """
    _runtime()


def can_read_graphs() -> bool:
    """Tell whether onnxruntime is installed."""
    try:
        _runtime()
    except InputError:
        return False
    return True


def _require_shapes(session: Any, card: Card, path: Path) -> None:
    entries = [(one.name, one.type, one.shape[1:]) for one in session.get_inputs()]
    names = [one.name for one in session.get_outputs()]
    side = card.image_size
    if entries != [(INPUT, "tensor(uint8)", [1, side, side])] or names != OUTPUTS:
        raise InputError(f"{path}: takes {entries} and gives {names}; a graph of this project takes {INPUT}, {OUTPUTS}")


def _metadata(card: Card) -> dict[str, str]:
    """Say in the file what its answers mean: the card, and what other programs look for."""
    return {
        "card": json.dumps(asdict(card)),
        "labels": json.dumps(card.class_names),
        "image_size": str(card.image_size),
        "operating_point": repr(card.operating_point),
        "band": json.dumps(card.band),
    }


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"{error.name} is not installed, and reading graphs needs it: {CURE}") from error
    return onnxruntime
