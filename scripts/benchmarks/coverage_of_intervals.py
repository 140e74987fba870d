"""Simulates whether intervals cover and tests err as they say; usage: coverage_of_intervals.py [PART ...]."""

import sys
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from scipy.special import expit, ndtr, ndtri

from xray_pneumonia.evaluation.calibration_check import check_calibration
from xray_pneumonia.evaluation.comparison import compare
from xray_pneumonia.evaluation.group_comparison import Repeat, compare_groups
from xray_pneumonia.evaluation.intervals import bootstrap, delong, predictive_value
from xray_pneumonia.evaluation.selection_bias import Evaluated, correct_for_choice
from xray_pneumonia.types import Vector

ICC = 0.5  # share of an image's deviation that is its patient's
RATES = ("accuracy", "sensitivity", "specificity")
Rows = Iterator[tuple[str, str]]


def cohort(rng: np.random.Generator, *, patients: int, gap: float, images: int = 2) -> pd.DataFrame:
    """Draw patients, half of them ill, with so many images each; the classes lie `gap` standard deviations apart."""
    owner = np.repeat(np.arange(patients), images)
    label = owner % 2
    logit = gap * (label - 0.5) + deviation(rng, owner)
    frame = {"id": np.arange(len(owner)).astype(str), "patient": owner.astype(str), "label": label}
    return pd.DataFrame(frame | {"logit": logit, "probability": expit(logit)})


def deviation(rng: np.random.Generator, owner: np.ndarray) -> Vector:
    """Draw deviations of unit variance, alike within a patient."""
    shared = rng.normal(size=int(owner.max()) + 1)[owner]
    return np.asarray(np.sqrt(ICC) * shared + np.sqrt(1 - ICC) * rng.normal(size=len(owner)))


def read(table: pd.DataFrame, rng: np.random.Generator, *, noise: float, offset: float) -> pd.DataFrame:
    """Let a net of its own noise and offset read the images of a cohort."""
    logit = table["logit"] + rng.normal(0, noise, len(table)) + rng.normal(0, offset)
    return table.assign(logit=logit, probability=expit(logit))


def areas() -> Rows:
    """Share of AUROC intervals that cover, 500 tables each."""
    for patients in (20, 40, 100, 412):
        shares = []
        for area in (0.90, 0.99, 0.997):
            hits = 0
            for seed in range(500):
                table = cohort(np.random.default_rng([1, seed]), patients=patients, gap=float(ndtri(area)) * np.sqrt(2))
                found = delong(table["label"], table["logit"], table["patient"])
                hits += found.low <= area <= found.high
            shares.append(f"{area}: {hits / 500:.3f}")
        yield f"AUROC, {patients} patients: covers", ", ".join(shares)


def rates() -> Rows:
    """Share of intervals of rates and predictive values that cover, 400 tables each."""
    for patients in (10, 20, 40, 100, 400):
        shares = []
        for rate in (0.80, 0.95, 0.99):
            hits = {"sensitivity": 0, "balanced_accuracy": 0, "ppv at 5 %": 0}
            truth = {"sensitivity": rate, "balanced_accuracy": rate, "ppv at 5 %": 1 / (1 + 19 * (1 - rate) / rate)}
            for seed in range(400):
                table = cohort(np.random.default_rng([2, seed]), patients=patients, gap=2 * float(ndtri(rate)))
                found = bootstrap(table, threshold=0.5, replicates=200, seed=seed)
                ill, well = found["sensitivity"], found["specificity"]
                ratio = (1 - well.value) / ill.value if ill.value else np.inf
                found["ppv at 5 %"] = predictive_value(ill, well, value=1 / (1 + 19 * ratio), odds=19)
                for name, value in truth.items():
                    hits[name] += found[name].low <= value <= found[name].high
            shares.append(f"{rate}: " + ", ".join(f"{name} {count / 400:.3f}" for name, count in hits.items()))
        yield f"rates, {patients} patients: cover", "; ".join(shares)


def pairs() -> Rows:
    """Share of 1,500 tables in which two equally good models differ "significantly"."""
    for patients in (20, 40, 100, 400):
        rejected = dict.fromkeys(("auroc", *RATES), 0)
        for seed in range(1500):
            rng = np.random.default_rng([3, seed])
            table = cohort(rng, patients=patients, gap=3.0)
            first, second = (read(table, rng, noise=0.7, offset=0) for _ in range(2))
            found = compare(first, second, thresholds=(0.5, 0.5), replicates=300, seed=seed, names=tuple(rejected))
            for one in found:
                rejected[one.name] += one.p_value < 0.05
        yield f"two models, {patients} patients: differ", _shares(rejected, 1500)


def seeds() -> Rows:
    """Share of 300 tables in which one config differs from itself, by the number of seeds in each group."""
    for count in (1, 2, 3, 5):
        rejected = dict.fromkeys(("auroc", *RATES), 0)
        for trial in range(300):
            rng = np.random.default_rng([4, trial])
            table = cohort(rng, patients=400, gap=3.5)
            groups = [[Repeat(read(table, rng, noise=0.5, offset=0.2), 0.5) for _ in range(count)] for _ in range(2)]
            for one in compare_groups(*groups, names=tuple(rejected), replicates=200, seed=trial).differences:
                rejected[one.name] += one.p_value < 0.05
        yield f"one config against itself, {count} seeds each: differs", _shares(rejected, 300)


def folds() -> Rows:
    """Share of 300 cohorts in which one config differs from itself over five folds."""
    rejected = dict.fromkeys(("auroc", *RATES), 0)
    for trial in range(300):
        groups = _folds(np.random.default_rng([5, trial]))
        for one in compare_groups(*groups, names=tuple(rejected), replicates=100, seed=trial).differences:
            rejected[one.name] += one.p_value < 0.05
    yield "one config against itself, 5 folds: differs", _shares(rejected, 300)


def _folds(rng: np.random.Generator) -> list[list[Repeat]]:
    groups: list[list[Repeat]] = [[], []]
    for fold in range(5):
        table = cohort(rng, patients=100, gap=3.5)
        table = table.assign(id=f"{fold}/" + table["id"], patient=f"{fold}/" + table["patient"])
        for group in groups:
            group.append(Repeat(read(table, rng, noise=0.5, offset=0.2), 0.5, ("", str(fold)), 4.0 * len(table)))
    return groups


def selection() -> Rows:
    """Mean error of the best of many equally good trials, as it stands and corrected, 60 cohorts each."""
    for trials in (5, 40):
        plain, corrected = [], []
        for place in range(60):
            rng = np.random.default_rng([6, place])
            table = cohort(rng, patients=400, gap=3.8)
            truth = float(ndtr(1.9 / np.sqrt(1 + 0.25)))
            configs = [[Evaluated(read(table, rng, noise=0.5, offset=0), 0.5)] for _ in range(trials)]
            found = correct_for_choice(configs, name="accuracy", seed=place)
            values = [((one.table["probability"] >= 0.5) == one.table["label"]).mean() for [one] in configs]
            plain.append(found.value - np.mean(values))  # against the mean of the trials, which are equally good
            corrected.append((found.corrected - np.mean(values), np.mean(values) - truth))
        yield (
            f"best of {trials} equal trials: accuracy off by",
            f"{np.mean(plain):+.4f}, corrected {np.mean(corrected, axis=0)[0]:+.4f}",
        )


def calibration() -> Rows:
    """Mean calibration error of a perfectly calibrated model, and what is beyond its floor, 200 tables each."""
    for images in (200, 781):
        found = []
        for seed in range(200):
            rng = np.random.default_rng([7, seed])
            logit = rng.normal(1, 3, images)
            label = (rng.random(images) < expit(logit)).astype(int)
            table = pd.DataFrame({"label": label, "probability": expit(logit), "patient": np.arange(images)})
            one = check_calibration(table, seed=seed)
            found.append((one.error, one.excess, one.slope.low <= 1 <= one.slope.high))
        error, excess, covered = np.mean(found, axis=0)
        yield (
            f"calibrated model, {images} images",
            f"error {error:.4f}, excess {excess:+.4f}, slope covers {covered:.2f}",
        )


def _shares(counts: dict[str, int], total: int) -> str:
    return ", ".join(f"{name} {count / total:.3f}" for name, count in counts.items())


PARTS: tuple[Callable[[], Rows], ...] = (areas, rates, pairs, seeds, folds, selection, calibration)


def main() -> None:
    """Print one row for each simulation."""
    for part in PARTS:
        if len(sys.argv) < 2 or part.__name__ in sys.argv[1:]:
            for name, result in part():
                print(f"| {name} | {result} |", flush=True)


if __name__ == "__main__":
    main()
