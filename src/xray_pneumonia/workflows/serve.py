"""How MLflow loads a bundle (`mlflow.pyfunc.load_model`, `mlflow models serve`): raw pixels in, a table out."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from xray_pneumonia.config import build
from xray_pneumonia.models.bundle import read_bundle


class BundleModel:
    """A bundle as MLflow wants it."""

    def __init__(self, folder: Path) -> None:
        self._card, weights = read_bundle(folder)
        self._net = build(self._card.net).eval()
        self._net.load_state_dict(weights)

    def predict(self, model_input: npt.NDArray[np.uint8] | dict[str, Any], params: Any = None) -> pd.DataFrame:
        """Turn raw pixels (B, 1, H, W) into a table of `probability` and `label`."""
        pixels = model_input["image"] if isinstance(model_input, dict) else model_input
        with torch.inference_mode():
            logits = self._net(torch.as_tensor(np.asarray(pixels))) / self._card.temperature + self._card.bias
        probability = torch.sigmoid(logits.double()).numpy()
        label = np.asarray(self._card.class_names)[(probability >= self._card.operating_point).astype(int)]
        return pd.DataFrame({"probability": probability, "label": label})


def _load_pyfunc(path: str) -> BundleModel:
    return BundleModel(Path(path))
