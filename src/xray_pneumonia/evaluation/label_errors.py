"""Finds labels that are probably wrong, by predictions of nets that were not trained on the films in question.

Confident learning (Northcutt, Jiang and Chuang, JAIR 70, 2021) for two classes: a film counts as one of a class where
its probability is at least the mean self-confidence of the films with that label. These counts (the confident joint)
estimate how many labels are wrong, and so many films of each label are doubted, the surest first ("prune by noise
rate").
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit

from xray_pneumonia.evaluation.calibration import fit
from xray_pneumonia.types import Vector


@dataclass(frozen=True)
class Review:
    """Films in falling order of doubt.

    `films` has the columns `id`, `label`, `suggested_label`, `doubt` (mean calibrated probability of the other class),
    `lowest` and `highest` of these probabilities, and `predictions` (how many there are). `thresholds` are the mean
    self-confidences of labels 0 and 1, `wrong` estimates how many films under each label are of the other class.
    """

    films: pd.DataFrame
    thresholds: tuple[float, float]
    wrong: tuple[float, float]

    @property
    def doubted(self) -> pd.DataFrame:
        """The films for which another label is suggested."""
        return self.films[self.films["suggested_label"] != self.films["label"]]


def review_labels(predictions: pd.DataFrame) -> Review:
    """Rank films by how sure nets that were not trained on them are of the other label.

    Args:
        predictions: a row for each film and net, with `id`, `label` (0 or 1), `logit` and `net`.
    """
    judged = pd.concat([_judge(part) for _, part in predictions.groupby("net", sort=False)])
    grouped = judged.groupby("id", sort=False)
    films = grouped[["label", "doubt", "own", "other"]].mean().astype({"label": int})
    films["lowest"], films["highest"] = grouped["doubt"].min(), grouped["doubt"].max()
    films["predictions"] = grouped.size()
    wrong = tuple(_estimate_wrong(films[films["label"] == label]) for label in (0, 1))
    rank = films.groupby("label")["doubt"].rank(method="first", ascending=False)
    doubted = rank <= films["label"].map(dict(enumerate(map(round, wrong))))
    films["suggested_label"] = films["label"].where(~doubted, 1 - films["label"])
    thresholds = tuple(float(judged.loc[judged["label"] == label, "threshold"].mean()) for label in (0, 1))
    ranked = films.sort_values("doubt", ascending=False, kind="stable").reset_index().drop(columns=["own", "other"])
    return Review(ranked, thresholds, wrong)  # type: ignore[arg-type]


def _judge(part: pd.DataFrame) -> pd.DataFrame:
    """Measure the films of one net by its own calibration and thresholds.

    Weighted classes shift all logits: unless that is undone, the films of one class are doubted before all others.
    """
    label = part["label"].to_numpy(int)
    logits = fit(part["logit"], label, method="platt").evidence(part["logit"])
    confidence = expit(logits[:, None] * [-1, 1])  # (N, 2): of labels 0 and 1
    rows = np.arange(len(part))
    thresholds = np.array([confidence[label == one, one].mean() for one in (0, 1)])
    above = confidence - thresholds
    return pd.DataFrame(
        {
            "id": part["id"].to_numpy(),
            "label": label,
            "doubt": confidence[rows, 1 - label],
            "own": above[rows, label],
            "other": above[rows, 1 - label],
            "threshold": thresholds[label],
        }
    )


def _estimate_wrong(films: pd.DataFrame) -> float:
    """Scale a row of the confident joint, which leaves out films that are near to no class, to all films of a label."""
    above = films[["own", "other"]].to_numpy()
    above = above[above.max(axis=1) >= 0]
    return len(films) * float((above[:, 1] > above[:, 0]).mean()) if len(above) else 0.0


def nearest(features: Vector, row: int, patients: npt.NDArray[np.object_], *, count: int) -> npt.NDArray[np.int64]:
    """Find the films of other patients whose features (N, D), standardised, lie nearest to those of a film."""
    spread = features.std(axis=0)
    distances = np.linalg.norm((features - features[row]) / np.where(spread > 0, spread, 1), axis=1)
    return np.argsort(np.where(patients == patients[row], np.inf, distances), kind="stable")[:count]
