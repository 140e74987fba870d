"""Serves a bundle through MLflow (`mlflow.pyfunc.load_model`, `mlflow models serve`): X-rays in, a table out.

Every logged model names this module as its loader; MLflow calls `_load_pyfunc`. What it is sent is untrusted: files are
decoded in child processes with the limits of `xray predict`, and a row that cannot be read says why, in that row alone.
"""

import base64
import os
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd

from xray_pneumonia.data.files import InputFile
from xray_pneumonia.data.images.encode import encode
from xray_pneumonia.data.images.limits import MAX_BYTES, DicomRules, ImageError
from xray_pneumonia.data.images.sandbox import DAMAGED, USUAL, Attempt, Decoders
from xray_pneumonia.inference.loading import load_model
from xray_pneumonia.inference.model import TrainedModel
from xray_pneumonia.types import Gray

PROCESSES = min(4, os.cpu_count() or 1)
FILE, PIXELS = "image", "pixels"  # the columns of the input
NUMBERS = ("probability", "gate_score")  # JSON knows no NaN, so they are None where there is none
COLUMNS = (NUMBERS[0], "label", "operating_point", "prevalence", "answer", "abstention", NUMBERS[1])


class BundleModel:
    """A trained model with the interface of MLflow's pyfunc."""

    def __init__(self, model: TrainedModel) -> None:
        self._model = model
        self._side = model.card.image_size
        self._decoders: Decoders | None = None  # started with the first file
        self._lock = Lock()  # a server answers several requests at once

    def predict(self, model_input: pd.DataFrame | dict[str, Any], params: Any = None) -> pd.DataFrame:
        """Classify X-rays.

        Args:
            model_input: a table or dict with the column `image` (the bytes of a PNG, JPEG or DICOM file, those in
                base64, or a `pathlib.Path`) or `pixels` (whole gray values: S x S from 0 to 255 as they are, other
                sizes from 0 to 65535 as a file of them is read); in a table with both, a row may give either.
            params: `prevalence`, the share of ill patients where the probabilities are to hold; 0 or none for the
                model's own.

        Returns:
            One row for each: `probability`, `label`, `operating_point`, `prevalence`, `answer`, `abstention`,
            `gate_score`. What cannot be read has no label, its numbers are None and the reason is its abstention.

        Raises:
            ValueError: the input has neither column, or the prevalence is no share.
            InputError: the model cannot translate its probabilities.
        """
        prevalence = (params or {}).get("prevalence") or None
        if prevalence is not None and not 0 < prevalence < 1:
            raise ValueError(f"prevalence={prevalence}: should be a share between 0 and 1, such as 0.05")
        model = self._model.at(prevalence)
        attempts = self._read_all(model_input)
        decoded = [attempt.pixels for attempt in attempts if attempt.pixels is not None]
        images = np.array(decoded, np.uint8).reshape(-1, self._side, self._side)
        answers = iter(model.decide(images).rename(columns={"gate": NUMBERS[1]}).to_dict("records"))
        rows = [_failed(attempt, model) if attempt.code else _doubted(next(answers), attempt) for attempt in attempts]
        return pd.DataFrame({name: _column(name, [row[name] for row in rows]) for name in COLUMNS})

    def _read_all(self, given: Any) -> list[Attempt]:
        columns = {name: _unwrapped(list(given[name]), name) for name in (FILE, PIXELS) if name in given}
        if not columns:
            raise ValueError(f"columns {sorted(given)}: give `{FILE}` (bytes of a PNG, JPEG or DICOM) or `{PIXELS}`")
        given = zip_longest(columns.get(FILE, []), columns.get(PIXELS, []))
        pairs = [(_resized(pixels, self._side) if _is_missing(file) else file, pixels) for file, pixels in given]
        with TemporaryDirectory() as folder:
            named = [(Path(folder) / str(row), file) for row, (file, _) in enumerate(pairs) if not _is_missing(file)]
            decoded = self._decoded(_written(path, file) for path, file in named) if named else iter(())
        return [self._checked(pixels) if _is_missing(file) else next(decoded) for file, pixels in pairs]

    def _decoded(self, files: Iterator[InputFile]) -> Iterator[Attempt]:
        with self._lock:
            self._decoders = self._decoders or Decoders(
                count=PROCESSES, size=self._side, rules=DicomRules(), limits=USUAL
            )
            try:
                return iter(self._decoders.read(files))
            except BaseException:
                self._decoders = None  # what its processes hold belongs to no later request
                raise

    def _checked(self, values: Any) -> Attempt:
        """Take S x S gray values as they are."""
        try:
            return Attempt(file=InputFile("", "", ""), pixels=_gray(values, self._side))
        except ImageError as error:
            return Attempt(file=InputFile("", "", ""), code=error.code, message=str(error))


def _doubted(row: dict[Any, Any], attempt: Attempt) -> dict[Any, Any]:
    """Withhold a sure answer about a file whose pixels may not be what was recorded."""
    return {**row, "answer": "look closer", "abstention": row["abstention"] or DAMAGED} if attempt.doubtful else row


def _column(name: str, values: list[Any]) -> pd.Series:
    if name not in NUMBERS:
        return pd.Series(values)
    known = [None if value is None or np.isnan(value) else value for value in values]
    return pd.Series(known, dtype=object if None in known else float)  # numbers alone would turn None into NaN


def _failed(attempt: Attempt, model: TrainedModel) -> dict[Any, Any]:
    known = {**dict.fromkeys(NUMBERS), "label": "", "operating_point": model.card.operating_point}
    reason = f"unreadable: {attempt.message}"
    return {**known, "prevalence": model.card.prevalence, "answer": "look closer", "abstention": reason}


def _unwrapped(values: list[Any], name: str) -> list[Any]:
    """Undo that MLflow puts the lists of a dict into one row."""
    inner = values[0] if len(values) == 1 and isinstance(values[0], list | np.ndarray) and len(values[0]) else None
    if inner is None:
        return values
    wrapped = isinstance(inner[0], str | bytes) if name == FILE else np.ndim(_first(inner[0])) == 1
    return list(inner) if wrapped else values


def _first(values: Any) -> Any:
    return values[0] if isinstance(values, list | np.ndarray) and len(values) else None


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _resized(values: Any, side: int) -> bytes | None:
    """Write gray values of another size than the model's as a PNG, which is decoded like every file; else None."""
    try:
        pixels = np.asarray(values if isinstance(values, np.ndarray) and values.ndim == 2 else list(values))
        pixels = np.stack(list(pixels)) if pixels.ndim == 1 else pixels  # a column of lists comes as arrays of arrays
        if pixels.ndim != 2 or pixels.shape == (side, side) or pixels.min() < 0 or (pixels % 1 != 0).any():
            return None
        return encode(pixels.astype(np.uint8 if pixels.max() < 2**8 else np.uint16)) if pixels.max() < 2**16 else None
    except (ValueError, TypeError, ImageError):
        return None  # what is wrong with them is said where they are checked


def _written(path: Path, value: Any) -> InputFile:
    """Write a file for its decoder, which alone opens it; a `Path`, which no request can hold, stays where it is."""
    if isinstance(value, Path):
        return InputFile(str(value.expanduser().absolute()), value.name, "")
    try:
        path.write_bytes(_bytes(value))
    except ImageError as error:
        return InputFile(str(path), path.name, "", (error.code, str(error)))
    except OSError as error:
        return InputFile(str(path), path.name, "", ("unreadable", f"cannot be kept: {error.strerror}"))
    return InputFile(str(path), path.name, "")


def _bytes(value: Any) -> bytes | bytearray:
    if not isinstance(value, str | bytes | bytearray):
        raise ImageError("not_an_image", f"is of type {type(value).__name__}; give the bytes of a file, or base64")
    if len(value) > MAX_BYTES * (4 / 3 if isinstance(value, str) else 1) + 4:
        raise ImageError("too_large", f"{len(value)} bytes or letters; at most {MAX_BYTES} bytes are read")
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else value
    except ValueError as error:
        raise ImageError("not_an_image", "is no base64") from error


def _gray(values: Any, side: int) -> Gray:
    try:
        pixels = np.asarray(list(values))  # a column of lists comes as an array of arrays
        pixels = (pixels[0] if pixels.ndim == 3 and len(pixels) == 1 else pixels).astype(np.float64)
    except (ValueError, TypeError) as error:
        given = "missing" if _is_missing(values) else f"of type {type(values).__name__}"
        raise ImageError("not_an_image", f"is {given}; give a file or {side} x {side} gray values") from error
    if pixels.shape != (side, side) or not (pixels % 1 == 0).all() or pixels.min() < 0 or pixels.max() > 255:
        shape = " x ".join(map(str, pixels.shape))
        raise ImageError("not_an_image", f"{shape} values; this model reads {side} x {side} whole numbers, 0 to 255")
    return pixels.astype(np.uint8)


def _load_pyfunc(path: str) -> BundleModel:
    return BundleModel(load_model(Path(path), name=path))
