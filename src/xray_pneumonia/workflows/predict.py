"""`xray predict`: classifies new X-rays with a trained model, as a second opinion."""

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xray_pneumonia.config import Node, anchor, build, check
from xray_pneumonia.data.files import find_files, printable
from xray_pneumonia.data.images.decode import DECODER_VERSION
from xray_pneumonia.data.images.sandbox import Attempt, Decoders
from xray_pneumonia.errors import InputError, SomeFailed
from xray_pneumonia.evaluation import gradcam as explain
from xray_pneumonia.evaluation.overlay import overlay
from xray_pneumonia.evaluation.quality import flag
from xray_pneumonia.inference.loading import EngineName
from xray_pneumonia.inference.model import TrainedModel
from xray_pneumonia.types import Count, Whole
from xray_pneumonia.workflows.contact_sheet import Outcome, print_outcome, summarise, write_sheet
from xray_pneumonia.workflows.find_model import find_and_load
from xray_pneumonia.workflows.prediction_files import Answers, Row

HEAT_MAPS = "heat_maps"
CHOSEN = ("run_id", "weights_sha256", "operating_point", "band", "temperature", "bias", "image_size", "net")
TRIED = 8  # films on which it is tried whether heat maps show what the model learned
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """The top-level keys of predict.yaml."""

    home: str
    model: str
    input: str
    output: str
    engine: EngineName
    explain: bool
    modalities: list[str]
    batch_size: Count
    workers: Count | None
    sheet_images: Whole
    limits: Node
    tracking: Node


def main(cfg: DictConfig) -> None:
    """Read every file, write the answers, print what became of them.

    Raises:
        InputError: there is nothing to read, or not one file could be read.
        SomeFailed: some files could not be read.
    """
    anchor(cfg)
    check(cfg, PredictConfig)
    source, folder = _places(cfg)
    model = find_and_load(cfg.model, tracking=build(cfg.tracking), home=Path(cfg.home), engine=cfg.engine)
    if cfg.explain and model.net is None:
        raise InputError("explain=true: heat maps need the net itself; use engine=torch or explain=false")
    decoders = Decoders(
        count=cfg.workers or os.cpu_count() or 1,
        size=model.card.image_size,
        modalities=cfg.modalities,
        limits=build(cfg.limits),
    )
    with Answers(folder, _identity(cfg, model, source)) as answers, decoders:
        _read_all(source, answers, decoders, model, cfg)
        answers.settle(lambda: find_files(source))
        outcome = summarise(answers.rows(), shown=cfg.sheet_images)
        write_sheet(folder, outcome, model, decoders, source)
    print_outcome(outcome, model, folder, Console(width=None if Console().is_terminal else 80))
    _judge(outcome, folder)


def _places(cfg: DictConfig) -> tuple[Path, Path]:
    source, folder = Path(cfg.input).expanduser().absolute(), Path(cfg.output).expanduser().absolute()
    if not source.exists():
        raise InputError(f"input={printable(cfg.input)}: no such file or folder")
    if folder.resolve() == source.resolve() or (source.is_dir() and folder.resolve().is_relative_to(source.resolve())):
        raise InputError(
            f"output={cfg.output}: lies in the input, where the next run would read it; name another folder"
        )
    if next(iter(find_files(source)), None) is None:
        raise InputError(f"input={printable(cfg.input)}: no images; the folder holds no files but hidden ones")
    return source, folder


def _identity(cfg: DictConfig, model: TrainedModel, source: Path) -> dict[str, Any]:
    """Name all on which an answer depends; a rerun with anything else does not mix its answers with these."""
    card = asdict(model.card)
    return {
        "input": printable(str(source)),
        **{name: card[name] for name in CHOSEN},
        "engine": cfg.engine,
        "explain": cfg.explain,
        "modalities": list(cfg.modalities),
        "decoder": DECODER_VERSION,
    }


def _read_all(source: Path, answers: Answers, decoders: Decoders, model: TrainedModel, cfg: DictConfig) -> None:
    """Answer what has no answer yet, batch by batch; the files are listed again rather than kept in memory."""
    total = sum(map(answers.lack, find_files(source)))
    if answers.resumed:
        log.info("goes on where it stopped: %d files are left", total)
    maps: bool | None = None if cfg.explain else False
    for batch in _shown(decoders.batches(filter(answers.lack, find_files(source)), cfg.batch_size), total):
        seen = [attempt for attempt in batch if attempt.pixels is not None]
        if maps is None and seen:
            maps = _maps_mean_something(model, np.stack([one.pixels for one in seen]))  # type: ignore[misc]
        read = iter(_answered(seen, model, answers.folder if maps else None))
        answers.add([next(read) if attempt.pixels is not None else _failed(attempt) for attempt in batch])
    if cfg.explain and maps is None:
        log.warning("no heat map was drawn: in none of the films does anything speak for PNEUMONIA")


def _shown(batches: Iterable[list[Attempt]], total: int) -> Iterator[list[Attempt]]:
    """Draw a bar with the pace and the time that is left, on a terminal."""
    columns = (TextColumn("Reading"), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
    console = Console(stderr=True)
    quiet = not sys.stderr.isatty()
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=total, pace="")
        for batch in batches:
            yield batch
            speed = progress.tasks[0].speed
            progress.update(task, advance=len(batch), pace=f"{speed:.0f} images/s" if speed else "")


def _answered(attempts: list[Attempt], model: TrainedModel, maps: Path | None) -> list[Row]:
    """Answer decoded files; `maps` is the folder that gets heat maps."""
    if not attempts:
        return []
    pixels = np.stack([attempt.pixels for attempt in attempts])  # type: ignore[misc]
    table = model.decide(pixels)
    flags = flag(pixels, table["gate"].to_numpy(), model.gate)
    heat = explain.grad_cam(model.require_net(), pixels) if maps else None
    rows = []
    for place, (attempt, answer) in enumerate(zip(attempts, table.to_dict("records"), strict=True)):
        row = _described(attempt) | {
            "decision": answer["answer"],
            "reason": answer["abstention"],
            "flags": flags[place],
            **{name: answer[name] for name in ("probability", "label", "operating_point")},
        }
        if maps and heat is not None and heat[place].any():  # a map without evidence shows nothing
            row["heat_map"] = f"{HEAT_MAPS}/{attempt.sha256[:32]}.png"
            (maps / HEAT_MAPS).mkdir(exist_ok=True)
            film: Any = attempt.pixels
            overlay(film, heat[place], width=attempt.width, height=attempt.height).save(maps / row["heat_map"])
        rows.append(row)
    return rows


def _failed(attempt: Attempt) -> Row:
    return _described(attempt) | {"error": attempt.code, "message": printable(attempt.message)}


def _described(attempt: Attempt) -> Row:
    return {
        "path": attempt.found.id,
        "decision": None,
        "probability": None,
        "label": None,
        "operating_point": None,
        "reason": "",
        "flags": [],
        "error": "",
        "message": "",
        "sha256": attempt.sha256,
        "width": attempt.width,
        "height": attempt.height,
        "mode": attempt.mode,
        "heat_map": None,
        "stamp": attempt.found.stamp,
    }


def _maps_mean_something(model: TrainedModel, films: Any) -> bool | None:
    """Try whether nets with random weights would draw the same maps; None where no film has one to compare."""
    net = model.require_net()
    maps = explain.grad_cam(net, films)
    if maps is None:
        log.warning("heat maps are withheld: the net has no layer whose output is a map of the image")
        return False
    telling = films[maps.any(axis=(1, 2))][:TRIED]
    likeness = explain.likeness_to_random(net, telling, seed=0) if len(telling) else np.nan
    if np.isnan(likeness):
        return None
    if likeness > explain.MOST_ALIKE:
        log.warning(
            "heat maps are withheld: nets with random weights draw much the same (rank correlation %.2f, at most %g is "
            "allowed), so they do not show what this model has learned",
            likeness,
            explain.MOST_ALIKE,
        )
    return likeness <= explain.MOST_ALIKE


def _judge(outcome: Outcome, folder: Path) -> None:
    """Turn failures into exit codes."""
    if not outcome.failures:
        return
    failed = sum(outcome.failures.values())
    why = ", ".join(f"{code} {count}" for code, count in outcome.failures.most_common(5))
    if failed == outcome.files:
        raise InputError(f"none of {failed} files could be read ({why}); see {folder / 'predictions.csv'}")
    raise SomeFailed(f"{failed} of {outcome.files} files could not be read ({why}); see {folder / 'predictions.csv'}")
