"""Runs `xray export`: writes a trained model as one ONNX file or one folder, kept only if it gives the same answers."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from scipy.special import expit

from xray_pneumonia.config import Node, check
from xray_pneumonia.data import synthetic
from xray_pneumonia.data.images.sandbox import decode_files
from xray_pneumonia.errors import AnswersDiffer, InputError
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.inference.bundle import CARD, GATE, WEIGHTS
from xray_pneumonia.inference.ensemble import ENSEMBLE
from xray_pneumonia.inference.loading import load_model
from xray_pneumonia.inference.model import TrainedModel
from xray_pneumonia.inference.onnx import GRAPH, read_graph, require_reader, require_writer, write_graph
from xray_pneumonia.tracking.stored_runs import StoredRun
from xray_pneumonia.types import Count, Gray, Text
from xray_pneumonia.workflows.find_model import find_named, folder_of
from xray_pneumonia.workflows.training_record import CONFIG, ENVIRONMENT, HISTORY

PARTS = (WEIGHTS, CARD, ENSEMBLE, GATE, CONFIG, HISTORY, ENVIRONMENT)  # what a folder may hold
TOLERANCE = 1e-4  # between the probabilities of the weights and of the graph
PATIENTS = 30  # that are generated where there is no real image
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The top-level keys of export.yaml."""

    home: Text
    extensions: dict[str, str]
    run_id: Text | None
    model: Text | None
    output: Text
    format: Literal["onnx", "bundle"]
    input: Text | None
    images: Count
    tracking: Node


def main(cfg: DictConfig) -> None:
    """Export, and print what was compared."""
    check(cfg, ExportConfig)
    require_writer()
    require_reader()
    found, name = find_named(cfg), cfg.run_id or cfg.model
    folder = folder_of(found)
    if folder.is_file():
        raise InputError(f"model={name}: is an exported file already; name the run or folder it was made of")
    model = load_model(folder, name=name)
    images, origin = _take_sample(found, cfg.input, size=model.card.image_size, most=cfg.images)
    output = Path(cfg.output).expanduser().resolve()
    with _draft(output) as draft:
        write_graph(model, draft / GRAPH)
        difference = require_equal(model, draft / GRAPH, images)
        for part in [GATE] if cfg.format == "onnx" else PARTS:
            if (folder / part).is_file():
                shutil.copyfile(folder / part, draft / part)
        if model.gate is not None and not (draft / GATE).exists():
            model.gate.write(draft / GATE)
        written = sorted(path.name for path in draft.iterdir())
        if output != folder.resolve():
            _require_own(output, written)
    print(
        f"The graph gives the same labels as the weights on {len(images)} images ({origin}); probabilities differ by "
        f"{difference:.1e} at most ({TOLERANCE:g} is allowed)"
    )
    print(f"Exported: {', '.join(written)} in {output}")


def require_equal(model: TrainedModel, path: Path, images: Gray) -> float:
    """Compare a graph with the model it was made of; returns the largest difference of probabilities.

    Raises:
        AnswersDiffer: a probability differs by more than `TOLERANCE`, or any answer is another.
    """
    card, graph, _ = read_graph(path)
    exported = replace(model, card=card, graph=graph)
    both = np.concatenate([images, extreme_images(card.image_size)])
    pairs = [(one(each) for one in (model.logits, exported.logits)) for each in (both, both[:1])]
    difference = max(float(np.abs(expit(first) - expit(second)).max()) for first, second in pairs)
    if not difference <= TOLERANCE:  # NaN is not
        raise AnswersDiffer(
            f"the graph's probabilities are {difference:.2g} off ({TOLERANCE:g} is allowed); nothing is kept"
        )
    first, second = model.decide(images), exported.decide(images)
    scores = first["gate"].to_numpy(), second["gate"].to_numpy()
    if not np.allclose(*scores, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
        raise AnswersDiffer(f"the graph's gate scores differ by more than {TOLERANCE:g}; nothing is kept")
    sure = ~(abs(scores[0] - 1) <= 2 * TOLERANCE)  # at the gate's limit rounding decides
    for column in ("label", "answer", "abstention"):
        others = int((first[column] != second[column])[sure].sum())
        if others or card != model.card:
            raise AnswersDiffer(f"the graph gives another {column} for {others} images; nothing is kept")
    return difference


def extreme_images(side: int) -> Gray:
    """Draw images at the limits of what a decoder gives: dark, bright, two levels, a gradient, a checkerboard, noise.

    None is nearly of one gray: the decoder refuses one gray, and a net that standardises each image amplifies the
    rounding of its mean.

    Returns:
        (8, side, side) uint8.
    """
    rng = np.random.default_rng(0)
    half = np.broadcast_to(np.arange(side) < side // 2, (side, side))
    two_levels = [np.where(half, dark, bright) for dark, bright in ((0, 32), (223, 255), (0, 255))]
    ramp = np.broadcast_to(np.linspace(0, 255, side), (side, side))
    board = np.indices((side, side)).sum(axis=0) % 2 * 255
    noise = [rng.integers(0, 256, (side, side)), *rng.normal(128, 30, (2, side, side)).clip(0, 255)]
    return np.stack([*two_levels, ramp, board, *noise]).astype(np.uint8)


def _require_own(output: Path, written: list[str]) -> None:
    """Refuse a folder with files of another export, which would become parts of one model; the same ones are replaced.

    Raises:
        InputError: there are some.
    """
    if others := [part for part in (GRAPH, *PARTS) if (output / part).exists() and part not in written]:
        raise InputError(f"output={output}: holds {', '.join(others)} of another export; name a new folder")


@contextmanager
def _draft(output: Path) -> Iterator[Path]:
    """Make a temporary folder within the output; its files replace those of the output if nothing is raised."""
    if output.exists() and not output.is_dir():
        raise InputError(f"output={output}: is a file; name a folder")
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output, prefix=".draft-") as draft:
        yield Path(draft)
        for path in sorted(Path(draft).iterdir()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(path, output / path.name)


def _take_sample(found: StoredRun | Path, given: str | None, *, size: int, most: int) -> tuple[Gray, str]:
    """Take the files given, else validation files of the model's run, else generated X-rays; and say which."""
    if given is not None:
        root = Path(given).expanduser()
        images = _decoded([root] if root.is_file() else sorted(root.rglob("*.*")), size, most)
        if not len(images):
            raise InputError(f"input={given}: no readable X-ray there")
        return images, f"given: {given}"
    images = _decoded(_validation_files(found) if isinstance(found, StoredRun) else [], size, most)
    if len(images):
        return images, "validation files of the run"
    log.warning("the run's validation files are out of reach, so generated X-rays stand in; input=DIR names real ones")
    with TemporaryDirectory() as folder:
        synthetic.generate(Path(folder) / "xrays", patients=PATIENTS, seed=0)
        return _decoded(sorted(Path(folder).rglob("*.jpeg")), size, most), "generated X-rays"


def _validation_files(run: StoredRun) -> list[Path]:
    """List the files of a run's validation split that are still where its config says."""
    try:
        root = Path(str(OmegaConf.create(run.config).data.root))  # type: ignore[union-attr]
        table = predictions.read(run.artifact("predictions/val.csv"))
    except (InputError, OmegaConfBaseException, AttributeError) as error:
        log.warning("run %s: %s", run.run_id, error)
        return []
    root = root if root.is_dir() else root.parent  # of a CSV
    files = [root / name for name in table["id"]]
    return [path for path in files if path.resolve().is_relative_to(root.resolve()) and path.is_file()]


def _decoded(paths: list[Path], size: int, most: int) -> Gray:
    """Decode at most so many files, spread evenly; what cannot be read is left out."""
    chosen = [paths[row] for row in np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int)]
    if not chosen:
        return np.empty((0, size, size), np.uint8)
    attempts = decode_files(chosen, size)
    for attempt in attempts:
        if attempt.code:
            log.warning("%s: left out: %s", attempt.file.path, attempt.message)
    images = [attempt.pixels for attempt in attempts if attempt.pixels is not None]
    return np.stack(images) if images else np.empty((0, size, size), np.uint8)
