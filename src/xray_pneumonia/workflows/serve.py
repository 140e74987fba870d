"""Serves a bundle through MLflow (`mlflow.pyfunc.load_model`, `mlflow models serve`): X-rays in, a table out.

Every logged model names this module as its loader; MLflow calls `_load_pyfunc`.
"""

import base64
import binascii
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xray_pneumonia.data.images.decode import decode
from xray_pneumonia.data.images.limits import ImageError
from xray_pneumonia.inference.loading import load_model
from xray_pneumonia.inference.model import TrainedModel
from xray_pneumonia.types import Gray


class BundleModel:
    """A trained model with the interface of MLflow's pyfunc."""

    def __init__(self, model: TrainedModel) -> None:
        self._model = model
        self._side = model.card.image_size

    def predict(self, model_input: pd.DataFrame | dict[str, Any], params: Any = None) -> pd.DataFrame:
        """Classify X-rays.

        Args:
            model_input: a table or dict with the column `image` (the bytes of a PNG or JPEG file; base64 is
                read too) or `pixels` (S x S gray values).
            params: are not used.

        Returns:
            One row for each: `probability`, `label`, `operating_point`, `answer`, `abstention`, `gate_score`. What
            cannot be read has probability and score NaN, no label, and the reason as its abstention.

        Raises:
            ValueError: the input is neither of these.
        """
        decoded = self._decode_all(model_input)
        images = {row: one for row, one in enumerate(decoded) if not isinstance(one, ImageError)}
        stacked = np.stack(list(images.values())) if images else np.empty((0, self._side, self._side), np.uint8)
        table = self._model.decide(stacked).rename(columns={"gate": "gate_score"})
        table = table.set_index(pd.Index(list(images), dtype=int))
        table = table.reindex(range(len(decoded)))
        for row, error in enumerate(decoded):
            if isinstance(error, ImageError):
                table.loc[row, ["answer", "label", "abstention"]] = ["look closer", "", f"unreadable: {error}"]
                table.loc[row, "operating_point"] = self._model.card.operating_point
        return table

    def _decode_all(self, given: Any) -> list[Gray | ImageError]:
        given = {name: list(given[name]) for name in given}
        for name, read, deep in (("image", self._decode, 1), ("pixels", self._check, 3)):
            values = given.get(name)
            if values is not None and len(values) == 1 and _depth(values[0]) == deep:
                values = values[0]  # MLflow puts the lists of a dict into one row
            if values is not None and len(values) and not any(one is None for one in values):
                return [read(one) for one in values]
        raise ValueError(f"columns {sorted(given)}: give `image` (bytes of a PNG or JPEG) or `pixels` in every row")

    def _decode(self, data: Any) -> Gray | ImageError:
        try:
            if isinstance(data, str):
                data = base64.b64decode(data, validate=True)
            return decode(bytes(data), self._side).pixels
        except binascii.Error:
            return ImageError("not_an_image", "is no base64")
        except ImageError as error:
            return error

    def _check(self, values: Any) -> Gray:
        pixels = np.asarray(list(values))  # a column of lists comes as an array of arrays
        pixels = pixels[0] if pixels.ndim == 3 and len(pixels) == 1 else pixels
        side = self._side
        if pixels.shape != (side, side) or pixels.min() < 0 or pixels.max() > 255 or (pixels % 1).any():
            raise ValueError(f"pixels {pixels.shape}: this model reads {side} x {side} whole numbers from 0 to 255")
        return pixels.astype(np.uint8)


def _depth(value: Any) -> int:
    return 1 + _depth(value[0]) if isinstance(value, list | np.ndarray) and len(value) else 0


def _load_pyfunc(path: str) -> BundleModel:
    return BundleModel(load_model(Path(path), name=path))
