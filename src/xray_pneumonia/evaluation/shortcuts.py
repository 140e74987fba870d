"""Computes shortcut baselines: how well the label is predicted without looking at a lung."""

import numpy as np
import pandas as pd
from PIL import Image

from xray_pneumonia.evaluation.intervals import Estimate, delong
from xray_pneumonia.types import Gray, Vector

SIDE, RIM = 16, 2  # of the thumbnail whose rim alone is looked at: 112 of 256 pixels
FEWEST = 5  # patients of a class, for five folds


def shortcuts(table: pd.DataFrame, images: Gray) -> dict[str, Estimate]:
    """Predict the label from what no doctor would look at; AUROC of each, with its interval.

    Each is a logistic regression scored out of fold on the same split, with folds grouped by patient. A model that is
    not clearly above them may have learned them. Too few patients give none. `images` (N, H, W) are those of the
    table, which holds `width`, `height` and `bytes` of the files where they are known.
    """
    if table.groupby("label")["patient"].nunique().min() < FEWEST:
        return {}
    pixels = np.asarray(images, np.float64)
    known = {"mean brightness": pixels.mean(axis=(1, 2))[:, None], "border alone": rim(images)}
    if {"width", "height"} <= set(table.columns) and table["width"].nunique() > 1:
        width, height = table["width"].to_numpy(float), table["height"].to_numpy(float)
        known["size of the file's image"] = np.stack([np.log(width * height + 1), width / np.maximum(height, 1)], 1)
    if "bytes" in table and table["bytes"].nunique() > 1:
        known["size of the file in bytes"] = np.log(table["bytes"].to_numpy(float) + 1)[:, None]
    return {
        name: delong(table["label"], _out_of_fold(features, table), table["patient"])
        for name, features in known.items()
    }


def rim(images: Gray) -> Vector:
    """Cut the border out of (N, H, W) images: an eighth of the side all around, (N, 112)."""
    small = [np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BOX), float) for one in images]
    inside = np.zeros((SIDE, SIDE), bool)
    inside[RIM:-RIM, RIM:-RIM] = True
    return np.reshape(small, (len(images), SIDE, SIDE))[:, ~inside]


def _out_of_fold(features: Vector, table: pd.DataFrame) -> Vector:
    from sklearn.linear_model import LogisticRegression  # over a second to import
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedGroupKFold(FEWEST, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    scores = cross_val_predict(
        model, features, table["label"], groups=table["patient"], cv=folds, method="decision_function"
    )
    return np.asarray(scores, np.float64)
