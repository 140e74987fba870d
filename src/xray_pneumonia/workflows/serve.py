"""How MLflow loads a bundle (`mlflow.pyfunc.load_model`, `mlflow models serve`): X-rays in, a table out."""

import base64
import binascii
from collections.abc import Iterable
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

    def predict(self, model_input: pd.DataFrame | dict[str, Any], params: Any = None) -> pd.DataFrame:
        """Answer X-rays.

        Args:
            model_input: a table or dict with the column `image` (the bytes of a PNG or JPEG file; base64 is
                read too) or `pixels` (S x S gray values).
            params: are not used.

        Returns:
            One row for each: `probability`, `label`, `operating_point`, `answer`, `abstention`. What cannot be
            read has probability NaN, no label, and the reason as its abstention.

        Raises:
            ValueError: the input is neither of these.
        """
        pictures = list(self._pictures(model_input))
        good = np.array([not isinstance(one, ImageError) for one in pictures], bool)
        side = self._model.card.image_size
        pixels = [one for one in pictures if not isinstance(one, ImageError)]
        table = self._model.decide(np.stack(pixels) if pixels else np.empty((0, side, side), np.uint8))
        table = table.drop(columns="gate")
        table = table.set_index(np.flatnonzero(good)).reindex(range(len(pictures)))
        broken = np.flatnonzero(~good)
        table.loc[broken, "answer"] = "look closer"
        table.loc[broken, "label"] = ""
        table.loc[broken, "operating_point"] = self._model.card.operating_point
        table.loc[broken, "abstention"] = [f"unreadable: {pictures[row]}" for row in broken]
        return table

    def _pictures(self, given: Any) -> Iterable[Gray | ImageError]:
        given = {name: list(given[name]) for name in given}
        for name, read, deep in (("image", self._decoded, 1), ("pixels", self._checked, 3)):
            values = given.get(name)
            if values is not None and len(values) == 1 and _depth(values[0]) == deep:
                values = values[0]  # MLflow puts the lists of a dict into one row
            if values is not None and len(values) and not any(one is None for one in values):
                return [read(one) for one in values]
        raise ValueError(f"columns {sorted(given)}: give `image` (bytes of a PNG or JPEG) or `pixels` in every row")

    def _decoded(self, data: Any) -> Gray | ImageError:
        try:
            if isinstance(data, str):
                data = base64.b64decode(data, validate=True)
            return decode(bytes(data), self._model.card.image_size).pixels
        except binascii.Error:
            return ImageError("not_an_image", "is no base64")
        except ImageError as error:
            return error

    def _checked(self, values: Any) -> Gray:
        side = self._model.card.image_size
        pixels = np.asarray(list(values))  # a column of lists comes as an array of arrays
        pixels = pixels[0] if pixels.ndim == 3 and len(pixels) == 1 else pixels
        if pixels.shape != (side, side) or pixels.min() < 0 or pixels.max() > 255 or (pixels % 1).any():
            raise ValueError(f"pixels {pixels.shape}: this model reads {side} x {side} whole numbers from 0 to 255")
        return pixels.astype(np.uint8)


def _depth(value: Any) -> int:
    return 1 + _depth(value[0]) if isinstance(value, list | np.ndarray) and len(value) else 0


def _load_pyfunc(path: str) -> BundleModel:
    return BundleModel(load_model(Path(path), name=path))
