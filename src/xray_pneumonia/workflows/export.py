"""`xray export`: a trained model as one ONNX file or one folder, kept only if it gives the same answers."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from omegaconf import DictConfig

from xray_pneumonia.config import Node, anchor, build, check
from xray_pneumonia.errors import AnswersDiffer, InputError
from xray_pneumonia.inference.bundle import CARD, WEIGHTS
from xray_pneumonia.inference.bundles import GATE, Bundle
from xray_pneumonia.inference.engines import torch_engine
from xray_pneumonia.inference.ensemble import ENSEMBLE
from xray_pneumonia.inference.loading import TOLERANCE, farthest, open_folder, probes
from xray_pneumonia.inference.model import Reader
from xray_pneumonia.inference.onnx import GRAPH, read_graph, require_reader, require_writer, write_graph
from xray_pneumonia.types import Count
from xray_pneumonia.workflows.find_model import find_model
from xray_pneumonia.workflows.samples import Sample, take_sample
from xray_pneumonia.workflows.training_record import CONFIG, ENVIRONMENT, HISTORY

PARTS = (WEIGHTS, CARD, ENSEMBLE, GATE, CONFIG, HISTORY, ENVIRONMENT)  # what a folder may hold
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The top-level keys of export.yaml."""

    home: str
    run_id: str | None
    model: str | None
    output: str
    format: Literal["onnx", "bundle"]
    input: str | None
    images: Count
    tracking: Node


def main(cfg: DictConfig) -> None:
    """Export and say what was checked."""
    anchor(cfg)
    check(cfg, ExportConfig)
    if (cfg.run_id is None) == (cfg.model is None):
        raise InputError(f"run_id={cfg.run_id} model={cfg.model}: name one of them")
    require_writer()
    require_reader()
    model, tracking, home = cfg.run_id or cfg.model, build(cfg.tracking), Path(cfg.home)
    folder = find_model(model, tracking=tracking, home=home)
    if folder.is_file():
        raise InputError(f"model={model}: is an exported file already; name the run or folder it was made of")
    bundle = open_folder(folder, name=model)
    sample = take_sample(model, cfg.input, size=bundle.card.image_size, most=cfg.images, tracking=tracking, home=home)
    output = Path(cfg.output).expanduser().resolve()
    with _aside(output) as draft:
        write_graph(bundle, draft / GRAPH)
        apart = require_equal(bundle, draft / GRAPH, sample)
        for name in [GATE] if cfg.format == "onnx" else PARTS:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, draft / name)
        if bundle.gate is not None and not (draft / GATE).exists():
            bundle.gate.write(draft / GATE)
    print(
        f"The graph gives the same labels as the weights on {len(sample.pixels)} images ({sample.origin}); "
        f"probabilities differ by {apart:.1e} at most ({TOLERANCE:g} is allowed)"
    )
    print(f"Exported: {', '.join(sorted(path.name for path in output.iterdir()))} in {output}")


def require_equal(bundle: Bundle, path: Path, sample: Sample) -> float:
    """Compare a graph with the weights it was made of; returns the largest distance of probabilities.

    Raises:
        AnswersDiffer: a probability is too far off, or any answer is another.
    """
    card, graph = read_graph(path)
    plain = torch_engine(bundle.answer)
    pixels = np.concatenate([sample.pixels, probes(card.image_size)])
    apart = max(farthest(plain, graph, pixels), farthest(plain, graph, pixels[:1]))
    if not apart <= TOLERANCE:
        raise AnswersDiffer(
            f"the graph's probabilities are {apart:.2g} off ({TOLERANCE:g} is allowed); nothing is kept"
        )
    first, second = (Reader(bundle.name, card, None, None, engine).read(sample.pixels) for engine in (plain, graph))
    for column in ("label", "answer", "abstention"):
        others = int((first[column] != second[column]).sum())
        if others or card != bundle.card:
            raise AnswersDiffer(f"the graph gives another {column} for {others} images; nothing is kept")
    return apart


@contextmanager
def _aside(output: Path) -> Iterator[Path]:
    """Lend a folder beside the last one's files; what is in it moves there once all is well."""
    if output.exists() and not output.is_dir():
        raise InputError(f"output={output}: is a file; name a folder")
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output, prefix=".draft-") as draft:
        yield Path(draft)
        for path in sorted(Path(draft).iterdir()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(path, output / path.name)
