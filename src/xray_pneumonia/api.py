"""Offers the package from Python: loads a model and asks it about films, trains as the command line does."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig
from PIL import Image

from xray_pneumonia.compose import launch
from xray_pneumonia.config import build, plain
from xray_pneumonia.data.files import InputFile
from xray_pneumonia.data.images.encode import encode
from xray_pneumonia.data.images.limits import DicomRules, ImageError
from xray_pneumonia.data.images.sandbox import USUAL, Attempt, Decoders
from xray_pneumonia.evaluation import gradcam
from xray_pneumonia.inference.model import TrainedModel
from xray_pneumonia.stored_config import load_stored

Film = str | Path | bytes | npt.NDArray[Any]
BATCH = 64


@dataclass(frozen=True)
class Answer:
    """What a model says to one film.

    Args:
        decision: "normal", "pneumonia" or "look closer" (or the names of the model's own classes).
        label: the class by the operating point alone; empty for a film that cannot be read.
        probability: of the positive class, calibrated; None for a film that cannot be read.
        operating_point: from which probability on the label is the positive class.
        reason: why the decision is "look closer"; else empty.
        flags: names of what is unusual about the film, from `FLAGS` in `evaluation/quality.py`.
        error: a short code where the film cannot be read; else empty.
        message: what that means.
    """

    decision: str
    label: str
    probability: float | None
    operating_point: float
    reason: str = ""
    flags: tuple[str, ...] = ()
    error: str = ""
    message: str = ""


class Model:
    """A trained model; its decoding processes start with the first film."""

    def __init__(self, model: TrainedModel) -> None:
        self.trained = model
        self._decoders: Decoders | None = None

    def __repr__(self) -> str:
        return f"Model({self.trained.name!r}, {' or '.join(self.trained.card.class_names)})"

    @overload
    def predict(self, films: Film) -> Answer: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, films: Sequence[Film]) -> list[Answer]: ...
    def predict(self, films: Film | Sequence[Film]) -> Answer | list[Answer]:
        """Answer films, decoded in child processes with limits; one that cannot be read gets an answer that says why.

        Args:
            films: a path, the bytes of a PNG, JPEG or DICOM file, or an array (H, W) of gray values: uint8, uint16, or
                floating numbers from 0 (black) to 1; or a list of them.

        Returns:
            One answer, or a list of them for a list.
        """
        from xray_pneumonia.workflows.predict import classify

        if isinstance(films, str | Path | bytes | np.ndarray):
            return self.predict([films])[0]
        answers = []
        for start in range(0, len(films), BATCH):
            attempts = self._decode(films[start : start + BATCH])
            rows = iter(classify([attempt for attempt in attempts if attempt.pixels is not None], self.trained, None))
            answers += [self._failed(one) if one.pixels is None else _answer(next(rows)) for one in attempts]
        return answers

    def explain(self, film: Film) -> Image.Image:
        """Draw where the evidence for the positive class lies, over the film.

        Raises:
            ValueError: the film cannot be read, the model is an exported graph, or its net has no maps.
        """
        (attempt,) = self._decode([film])
        if attempt.pixels is None:
            raise ValueError(f"{attempt.code}: {attempt.message}")
        heat = gradcam.grad_cam(self.trained.require_net(), attempt.pixels[None])
        if heat is None:
            raise ValueError(f"{self.trained.name}: its net has no layer whose output is a map of the image")
        return gradcam.overlay(attempt.pixels, heat[0], width=attempt.width, height=attempt.height)

    def _decode(self, films: Sequence[Film]) -> list[Attempt]:
        if self._decoders is None:
            self._decoders = Decoders(count=2, size=self.trained.card.image_size, rules=DicomRules(), limits=USUAL)
        with TemporaryDirectory() as folder:
            files = [_file(film, Path(folder) / str(number)) for number, film in enumerate(films)]
            return self._decoders.read(files)

    def _failed(self, attempt: Attempt) -> Answer:
        point = self.trained.card.operating_point
        return Answer("look closer", "", None, point, "unreadable", (), attempt.code, attempt.message)


def _answer(row: dict[str, Any]) -> Answer:
    names = ("decision", "label", "probability", "operating_point", "reason")
    return Answer(**{name: row[name] for name in names}, flags=tuple(row["flags"]))


def _file(film: Film, draft: Path) -> InputFile:
    """Name the file of a film; bytes and arrays are written to one."""
    if isinstance(film, str | Path):
        return InputFile(str(Path(film).expanduser().absolute()), "film", "")
    try:
        draft.write_bytes(film if isinstance(film, bytes) else encode(film))
    except ImageError as error:
        return InputFile(str(draft), "film", "", (error.code, str(error)))
    return InputFile(str(draft), "film", "")


@dataclass(frozen=True)
class Run:
    """A training as it stands in the store.

    Args:
        run_id: of MLflow; what `load` takes.
        name: of the run.
        metrics: name -> last value.
        config: the config that it ran with.
        report: the HTML page of its validation; None where `evaluation.report=false`, or where the files lie elsewhere.
    """

    run_id: str
    name: str
    metrics: dict[str, float] = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    report: Path | None


def load(name: str = "final", *overrides: str) -> Model:
    """Load a trained model.

    Args:
        name: a shipped model, a run id, `NAME@ALIAS`, a folder, or an exported `.onnx` file.
        overrides: keys of `xray predict`, such as `home=DIR` for the store that holds the run.

    Raises:
        InputError: there is no such model, or it is damaged.
    """
    return Model(launch("predict", [f"model={name}", "input=.", *overrides], run=_find))


def _find(cfg: DictConfig) -> TrainedModel:
    from xray_pneumonia.workflows.find_model import find_and_load

    return find_and_load(cfg.model, tracking=build(cfg.tracking), home=Path(cfg.home))


def train(*overrides: str) -> Run:
    """Train one classifier, as `xray train` does with the same keys.

    Raises:
        InputError: a key or a value is wrong.
        ValueError: a sweep is asked for, which the command line runs.
    """
    if {"-m", "--multirun"}.intersection(overrides):
        raise ValueError("-m: run sweeps from the command line, `xray train -m ...`; they outlive a notebook")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, as on the command line
        run: Run = launch("train", list(overrides), run=_train)
    return run


def _train(cfg: DictConfig) -> Run:
    from xray_pneumonia.tracking.store import open_existing
    from xray_pneumonia.tracking.stored_runs import read_run
    from xray_pneumonia.workflows.train import train_one

    trained = train_one(cfg)
    run = read_run(open_existing(build(cfg.tracking), home=Path(cfg.home)), trained.run_id)
    report = (run.folder or Path()) / "evaluation" / "val" / "report.html"
    config = plain(load_stored(run.config, origin=f"run {run.run_id}"))
    return Run(run.run_id, run.name, dict(run.metrics), config, report if report.exists() else None)
