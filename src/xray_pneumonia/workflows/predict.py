"""Runs `xray predict`: classifies new X-rays with a trained model, as a second opinion."""

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from xray_pneumonia.config import Node, build, check
from xray_pneumonia.data.files import find_files, find_films, is_text, printable, shown
from xray_pneumonia.data.images.limits import DECODER_VERSION, DicomRules
from xray_pneumonia.data.images.sandbox import DAMAGED, Attempt, Decoders
from xray_pneumonia.errors import InputError, SomeFailed, raise_if_stopped
from xray_pneumonia.evaluation import gradcam
from xray_pneumonia.evaluation.input_gate import FeatureGate
from xray_pneumonia.evaluation.quality import quality_flags
from xray_pneumonia.inference.loading import EngineName
from xray_pneumonia.inference.model import TrainedModel
from xray_pneumonia.types import CLASSES, Count, Gray, OpenFraction, Positive, Processes, Text, Whole
from xray_pneumonia.whole_files import private
from xray_pneumonia.workflows.contact_sheet import Summary, print_last_line, print_summary, summarise, write_sheet
from xray_pneumonia.workflows.find_model import find_and_load
from xray_pneumonia.workflows.prediction_files import TABLE, PredictionFiles, Row, make_row
from xray_pneumonia.workflows.watch import stamps, watch

HEAT_MAPS = "heat_maps"
CHOSEN = (
    "run_id", "weights_sha256", "operating_point", "band", "temperature", "bias", "prevalence", "image_size", "net",
)  # fmt: skip
COMPARED = 8  # images whose heat maps are compared with those of random weights
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """The top-level keys of predict.yaml."""

    home: Text
    extensions: dict[str, str]
    model: Text
    input: Text
    output: Text
    engine: EngineName
    explain: bool
    watch: bool
    prevalence: OpenFraction | None
    cost: Positive | None
    modalities: list[Text]
    views: list[Text]
    body_parts: list[Text]
    any_preamble: bool
    batch_size: Count
    workers: Processes | None
    sheet_images: Whole
    limits: Node
    tracking: Node


def main(cfg: DictConfig) -> None:
    """Classify every file, write the answers and the contact sheet, print a summary.

    Raises:
        InputError: there is nothing to read, or not one file could be read.
        SomeFailed: some files could not be read.
    """
    check(cfg, PredictConfig)
    with private():
        _predict(cfg)


def _predict(cfg: DictConfig) -> None:
    source, folder = _places(cfg)
    model = find_and_load(cfg.model, tracking=build(cfg.tracking), home=Path(cfg.home), engine=cfg.engine)
    model = model.at(cfg.prevalence, cost=cfg.cost)
    if cfg.explain and model.net is None:
        cure = f"extensions=[{','.join(model.card.extensions)}]" if model.card.extensions else "engine=torch"
        raise InputError(f"explain=true: heat maps need the net itself; use {cure} or explain=false")
    decoders = Decoders(
        count=cfg.workers or os.cpu_count() or 1,
        size=model.card.image_size,
        rules=dicom_rules(cfg),
        limits=build(cfg.limits),
    )
    there = stamps(source) if cfg.watch else {}
    with decoders:
        summary = _answer(source, folder, decoders, model, cfg)
        _name_texts(source)
        print_summary(summary, model, folder)
        if cfg.watch:
            watch(source, there, lambda: print_last_line(_answer(source, folder, decoders, model, cfg), folder))
    _raise_failures(summary, folder)


def _answer(source: Path, folder: Path, decoders: Decoders, model: TrainedModel, cfg: DictConfig) -> Summary:
    """Answer what has no answer yet; write rows and contact sheet."""
    with PredictionFiles(folder, _identity(cfg, model, source)) as answers:
        _classify_all(source, answers, decoders, model, cfg)
        answers.sort(None if cfg.watch else lambda: find_films(source))
        home, positive = model.gate.home if model.gate else None, model.card.class_names[1]
        summary = summarise(answers.rows(), shown=cfg.sheet_images, positive=positive, home=home)
        write_sheet(folder, summary, model, decoders, source)
    return summary


def _name_texts(source: Path) -> None:
    """Say which files were left out since they are texts."""
    if texts := [file.id for file in find_files(source) if source.is_dir() and is_text(file.path)]:
        log.info("no film, left out: %d (%s)", len(texts), shown(texts))


def _places(cfg: DictConfig) -> tuple[Path, Path]:
    source, folder = Path(cfg.input).expanduser().absolute(), Path(cfg.output).expanduser().absolute()
    if not source.exists():
        raise InputError(f"input={printable(cfg.input)}: no such file or folder")
    if folder.resolve() == source.resolve() or (source.is_dir() and folder.resolve().is_relative_to(source.resolve())):
        raise InputError(f"output={cfg.output}: lies in the input, which the next run would read; name another folder")
    if not cfg.watch and next(iter(find_films(source)), None) is None:
        raise InputError(f"input={printable(cfg.input)}: no images; it holds no files but hidden ones and texts")
    return source, folder


def dicom_rules(cfg: DictConfig) -> DicomRules:
    """Read which DICOM files are accepted from the keys that `predict` and `serve` share."""
    words = {name: tuple(word.upper() for word in cfg[name]) for name in ("modalities", "views", "body_parts")}
    return DicomRules(**words, any_preamble=cfg.any_preamble)


def _identity(cfg: DictConfig, model: TrainedModel, source: Path) -> dict[str, Any]:
    """List all that an answer depends on; a rerun with anything else does not mix its answers with these."""
    card = asdict(model.card)
    gate = {"gate": model.gate.limits.tolist()} if isinstance(model.gate, FeatureGate) else {}
    return gate | {
        "input": printable(str(source)),
        **{name: card[name] for name in CHOSEN},
        **({} if model.card.classes == CLASSES else {"class_names": card["class_names"]}),
        "engine": cfg.engine,
        "explain": cfg.explain,
        **asdict(dicom_rules(cfg)),
        "decoder": DECODER_VERSION,
    }


def _classify_all(
    source: Path, answers: PredictionFiles, decoders: Decoders, model: TrainedModel, cfg: DictConfig
) -> None:
    """Classify what has no answer yet, batch by batch; the files are listed again rather than kept in memory."""
    total = sum(map(answers.lacks, find_films(source)))
    if answers.resumed:
        log.info("goes on where it stopped: %d files are left", total)
    maps = HeatMaps(model.require_net(), answers.folder) if cfg.explain else None
    for batch in _with_progress(decoders.batches(filter(answers.lacks, find_films(source)), cfg.batch_size), total):
        raise_if_stopped()
        rows = iter(classify([attempt for attempt in batch if attempt.pixels is not None], model, maps))
        answers.append([next(rows) if attempt.pixels is not None else _failed(attempt) for attempt in batch])
    if maps is not None and maps.informative is None:
        log.warning("no heat map was drawn: in none of the films does anything speak for %s", model.card.classes[1])


def _with_progress(batches: Iterable[list[Attempt]], total: int) -> Iterator[list[Attempt]]:
    """Show a bar with the pace and the time that is left, on a terminal."""
    columns = (TextColumn("Reading"), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
    console, quiet = Console(stderr=True), not sys.stderr.isatty()
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=total, pace="")
        for batch in batches:
            yield batch
            speed = progress.tasks[0].speed
            progress.update(task, advance=len(batch), pace=f"{speed:.0f} images/s" if speed else "")


def classify(attempts: list[Attempt], model: TrainedModel, maps: "HeatMaps | None") -> list[Row]:
    """Make the rows of decoded files."""
    if not attempts:
        return []
    images = np.stack([attempt.pixels for attempt in attempts])  # type: ignore[misc]
    table = model.decide(images)
    flags = quality_flags(images, table["abstention"], model.input_check)
    drawn = maps.draw(attempts, images) if maps else [None] * len(attempts)
    table["brightness"] = images.mean(axis=(1, 2)).round(1)
    table["gate_score"] = [None if np.isnan(score) else round(score, 4) for score in table.pop("gate")]
    rows = table.rename(columns={"answer": "decision", "abstention": "reason"}).to_dict("records")
    return [
        make_row(attempt, {**_doubted(row, attempt), "flags": [*found, *attempt.notes], "heat_map": heat_map})
        for attempt, row, found, heat_map in zip(attempts, rows, flags, drawn, strict=True)
    ]


def _doubted(row: dict[Any, Any], attempt: Attempt) -> dict[Any, Any]:
    """Withhold a sure answer about a file whose pixels may not be what was recorded."""
    if not attempt.doubtful:
        return row
    return {**row, "decision": "look closer", "reason": row["reason"] or DAMAGED}


def _failed(attempt: Attempt) -> Row:
    return make_row(attempt, {"error": attempt.code, "message": printable(attempt.message)})


@dataclass
class HeatMaps:
    """Draws heat maps over images, unless nets with random weights draw much the same."""

    net: nn.Module
    folder: Path
    informative: bool | None = None  # None until an image with evidence for the positive class was seen
    fewest: int = 1  # images after which `informative` changes no more
    seen: list[Gray] = field(default_factory=list)
    final: bool = False

    def draw(self, attempts: list[Attempt], images: Gray) -> list[str | None]:
        """Write maps of (N, H, W) images; returns their paths in the folder, None for an image without evidence."""
        heat = self.compute(images)
        if heat is None:
            return [None] * len(attempts)
        (self.folder / HEAT_MAPS).mkdir(exist_ok=True)
        names = [f"{HEAT_MAPS}/{attempt.sha256[:32]}.png" for attempt in attempts]
        for attempt, image, one, name in zip(attempts, images, heat, names, strict=True):
            if one.any():
                gradcam.overlay(image, one, width=attempt.width, height=attempt.height).save(self.folder / name)
        return [name if one.any() else None for name, one in zip(names, heat, strict=True)]

    def compute(self, images: Gray) -> gradcam.Maps | None:
        """Compute maps (N, H, W) of images; None where there are none or they are withheld."""
        if self.final and not self.informative:
            return None
        heat = gradcam.grad_cam(self.net, images)
        if not self.final:
            self.informative = self._compare(images, heat)
        return heat if self.informative else None

    def offer(self, images: Iterable[Gray]) -> None:
        """Keep images with evidence for the positive class, to compare maps on them."""
        self.seen = [*self.seen, *images][:COMPARED]

    def _compare(self, images: Gray, heat: gradcam.Maps | None) -> bool | None:
        if heat is None:
            log.warning("heat maps are withheld: the net has no layer whose output is a map of the image")
            self.final = True
            return False
        self.offer(images[heat.any(axis=(1, 2))])
        likeness = gradcam.likeness_to_random(self.net, np.stack(self.seen), seed=0) if self.seen else np.nan
        if np.isnan(likeness):
            return None
        self.final = len(self.seen) >= self.fewest
        if likeness > gradcam.MOST_ALIKE:
            log.warning(
                "heat maps are withheld: nets with random weights draw much the same (rank correlation %.2f, at most "
                "%g is allowed), so they do not show what this model has learned",
                likeness,
                gradcam.MOST_ALIKE,
            )
        return bool(likeness <= gradcam.MOST_ALIKE)


def _raise_failures(summary: Summary, folder: Path) -> None:
    """Turn failures into exit codes."""
    if not summary.failures:
        return
    failed = sum(summary.failures.values())
    why = ", ".join(f"{code} {count}" for code, count in summary.failures.most_common(5))
    if failed == summary.files:
        raise InputError(f"none of {failed} files could be read ({why}); see {folder / TABLE}")
    raise SomeFailed(f"{failed} of {summary.files} files could not be read ({why}); see {folder / TABLE}")
