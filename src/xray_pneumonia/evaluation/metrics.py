"""Every metric of a table of predictions, under many weightings of its patients at once.

One weighting of all ones gives the metrics themselves; many random ones give a bootstrap. What is
undefined (a class that is missing, no image that was called) is NaN, never 0.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd

Vector = npt.NDArray[np.float64]

AT_THRESHOLD = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv", "f1")
OF_RANKS = ("auroc", "average_precision")
OF_PROBABILITIES = ("brier", "log_loss", "calibration_error")
NAMES = (*OF_RANKS, *AT_THRESHOLD, *OF_PROBABILITIES)
BINS = 10  # of equal width, for the calibration error
BLOCK = 2**20  # weights held in memory at once; ranks take about ten arrays of this size


class Measures:
    """The metrics of one table as a function of the weights of its patients.

    What is a ratio of sums needs one sum for each patient, so a thousand weightings are one product of
    matrices; AUROC and average precision need the rows in order of their scores.

    Args:
        label: (N,) of 0 and 1.
        probability: (N,) of PNEUMONIA, in [0, 1].
        patient: (N,) whose image it is; resampling moves all images of a patient together.
        threshold: the probability from which an image is called PNEUMONIA.
        score: (N,) what ranks the images; the logit where there is one, since certain probabilities tie.
    """

    def __init__(
        self,
        label: npt.ArrayLike,
        probability: npt.ArrayLike,
        patient: npt.ArrayLike,
        *,
        threshold: float,
        score: npt.ArrayLike | None = None,
    ) -> None:
        truth, chance = np.asarray(label, np.float64), np.asarray(probability, np.float64)
        codes, patients = pd.factorize(np.asarray(patient))
        self.patients, self.images = len(patients), len(truth)
        self.codes = codes.astype(np.int64)
        called = chance >= threshold
        self._sums = self._per_patient(_columns(truth, chance, called))  # (P, columns)
        ranks = chance if score is None else np.asarray(score, np.float64)
        order = np.argsort(-ranks, kind="stable")
        self._ordered = self.codes[order]
        self._truth = truth[order]
        changes = np.flatnonzero(np.diff(ranks[order])) + 1
        self._ties = np.concatenate([[0], changes]) if len(changes) + 1 < len(truth) else None
        self.basis = _patients_behind(truth, called, self.codes)

    def __call__(self, weights: Vector) -> dict[str, Vector]:
        """Weigh (B, P) patients; returns (B,) values for each of `NAMES`."""
        ranks = [self._ranked(block) for block in _blocks(weights, self.images)]
        auroc, precision = np.concatenate(ranks, axis=1)
        return {"auroc": auroc, "average_precision": precision, **_ratios(weights @ self._sums)}

    def once(self) -> dict[str, float]:
        """Give the metrics of the table as it is."""
        return {name: float(values[0]) for name, values in self(np.ones((1, self.patients))).items()}

    def _per_patient(self, columns: list[Vector]) -> Vector:
        sums = [np.bincount(self.codes, column, minlength=self.patients) for column in columns]
        return np.stack(sums, axis=1)

    def _ranked(self, weights: Vector) -> Vector:
        """Give AUROC and average precision, (2, B); equal scores count half, as in scikit-learn."""
        rows = weights[:, self._ordered]  # (B, N), from the highest score down
        positive = rows * self._truth
        negative = rows - positive
        if self._ties is not None:
            positive = np.add.reduceat(positive, self._ties, axis=1)
            negative = np.add.reduceat(negative, self._ties, axis=1)
        above = np.cumsum(positive, axis=1)
        hits, misses = above[:, -1], negative.sum(axis=1)
        pairs = np.einsum("bg,bg->b", negative, above - positive / 2)
        reached = above + np.cumsum(negative, axis=1)
        precision = np.divide(above, reached, out=np.zeros_like(above), where=reached > 0)
        found = np.einsum("bg,bg->b", positive, precision)
        both = np.where((hits > 0) & (misses > 0), 1.0, np.nan)
        return np.stack([_share(pairs, hits * misses) * both, _share(found, hits) * both])


def measure(table: pd.DataFrame, *, threshold: float) -> Measures:
    """Prepare the metrics of a table of predictions."""
    return Measures(table["label"], table["probability"], table["patient"], threshold=threshold, score=table["logit"])


def predictive_values(
    sensitivity: npt.ArrayLike, specificity: npt.ArrayLike, *, prevalence: float
) -> tuple[Vector, Vector]:
    """Apply Bayes' rule: what a positive and a negative answer are worth where so many are ill.

    Returns:
        Positive and negative predictive value; NaN where no such answer is ever given.
    """
    se, sp = np.asarray(sensitivity, np.float64), np.asarray(specificity, np.float64)
    ill, well = prevalence, 1 - prevalence
    return (
        _share(se * ill, se * ill + (1 - sp) * well),
        _share(sp * well, sp * well + (1 - se) * ill),
    )


def _columns(truth: Vector, chance: Vector, called: npt.NDArray[np.bool_]) -> list[Vector]:
    """List what is summed: truth, its opposite, hits, false alarms, squared error, log loss, gaps of the bins."""
    tiny = np.finfo(np.float64).eps  # as scikit-learn clips: a certain mistake costs 36, not infinity
    safe = np.clip(chance, tiny, 1 - tiny)
    loss = -(truth * np.log(safe) + (1 - truth) * np.log1p(-safe))
    bins = np.minimum((chance * BINS).astype(np.int64), BINS - 1)
    gaps = [(truth - chance) * (bins == place) for place in range(BINS)]
    return [truth, 1 - truth, truth * called, (1 - truth) * called, (truth - chance) ** 2, loss, *gaps]


def _ratios(sums: Vector) -> dict[str, Vector]:
    ill, well, hits, alarms, squares, losses = sums[:, :6].T
    images = ill + well
    sensitivity, specificity = _share(hits, ill), _share(well - alarms, well)
    return {
        "accuracy": _share(hits + well - alarms, images),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": _share(hits, hits + alarms),
        "npv": _share(well - alarms, well - alarms + ill - hits),
        "f1": _share(2 * hits, hits + alarms + ill),
        "brier": _share(squares, images),
        "log_loss": _share(losses, images),
        "calibration_error": _share(np.abs(sums[:, 6:]).sum(axis=1), images),
    }


def _patients_behind(truth: Vector, called: npt.NDArray[np.bool_], codes: npt.NDArray[np.int64]) -> dict[str, int]:
    """Count the patients that each proportion rests on."""
    rows = {
        "accuracy": np.ones(len(truth), bool),
        "sensitivity": truth == 1,
        "specificity": truth == 0,
        "ppv": called,
        "npv": ~called,
    }
    return {name: len(np.unique(codes[chosen])) for name, chosen in rows.items()}


def _share(part: npt.ArrayLike, whole: npt.ArrayLike) -> Vector:
    whole = np.asarray(whole, np.float64)
    return np.asarray(np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0), np.float64)


def _blocks(weights: Vector, images: int) -> list[Vector]:
    size = max(1, BLOCK // max(1, images))
    return [weights[start : start + size] for start in range(0, len(weights), size)]
