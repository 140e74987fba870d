"""How MLflow loads a bundle (`mlflow.pyfunc.load_model`, `mlflow models serve`): raw pixels in, a table out."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_pneumonia.reading.opening import open_reader
from xray_pneumonia.reading.reader import Reader


class BundleModel:
    """A bundle as MLflow wants it."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def predict(self, model_input: npt.NDArray[np.uint8] | dict[str, Any], params: Any = None) -> pd.DataFrame:
        """Turn raw pixels (B, 1, H, W) into the table of `Reader.read`."""
        pixels = model_input["image"] if isinstance(model_input, dict) else model_input
        return self._reader.read(np.asarray(pixels)[:, 0])


def _load_pyfunc(path: str) -> BundleModel:
    return BundleModel(open_reader(Path(path), name=path, engine="auto"))
