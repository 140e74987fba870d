"""Fits a model's decisions to films of another hospital, and tells by cross-validation what an adaptation gains.

Nothing that reads a film was fitted on it, its patient or its fold: neither the net, nor calibration, operating point,
margin or the gate's limits, which are fitted to what other nets, trained without both folds, say of the other folds.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import expit

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.abstention import Band, fit_promise, is_certified
from xray_pneumonia.evaluation.assessment import Decision, decide
from xray_pneumonia.evaluation.comparison import Difference, compare
from xray_pneumonia.evaluation.input_gate import FeatureGate
from xray_pneumonia.evaluation.intervals import CONFIDENCE, Estimate, Z, bootstrap, delong_difference, share
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.types import Classes, Vector

TESTED = ("auroc", "sensitivity", "specificity", "balanced_accuracy")
LEAST = 0.05  # of the films, the fewest that the widest margin answers
NOTHING = 1000.0  # logits: a margin that no film exceeds

# Takes the folds that are left out; returns `logit` and `distance` of all films, from a fit to the other folds.
Reading = Callable[[frozenset[int]], pd.DataFrame]


def patients_needed(precision: float) -> int:
    """Count the patients of a class with which a rate of one half is known within +- `precision` (Wilson, 1927)."""
    return int(np.ceil((Z / (2 * precision)) ** 2 - Z**2))


def require_enough_patients(films: pd.DataFrame, *, precision: float, classes: Classes) -> None:
    """Refuse a sample that could not tell whether an adaptation is any good.

    Raises:
        InputError: a class has too few patients.
    """
    needed = patients_needed(precision)
    found = films.groupby("label")["patient"].nunique().reindex([0, 1], fill_value=0)
    if found.min() < needed:
        there = " and ".join(f"{found[label]} patients with {classes[label]}" for label in (0, 1))
        raise InputError(
            f"data.root: holds {there}; {needed} of each are needed to know sensitivity and specificity within "
            f"+- {100 * precision:g} points (precision={precision:g}); label more films, or ask for less precision"
        )


@dataclass(frozen=True)
class LocalRule:
    """What answers films of a hospital: a decision, and the limits (2,) of the gate's two rules."""

    decision: Decision
    limits: Vector

    @classmethod
    def fit(cls, known: pd.DataFrame, settings: EvaluationSettings, *, folds: int) -> "LocalRule":
        """Fit it to `logit`, `distance` and `upright` of labelled films that what computed them never saw.

        Where no margin certifies `max_error`, it answers nothing. The widest margin answers twice as many films as are
        needed to certify anything.
        """
        decision = decide(known, settings)
        fewest = np.log(1 - CONFIDENCE) / np.log(1 - settings.max_error)
        promise = fit_promise(
            decision.calibration.logits(known["logit"]),
            known["label"],
            known["patient"],
            max_error=settings.max_error,
            folds=folds,
            sure=float(np.clip(2 * fewest / len(known), LEAST, 0.7)),
        )
        if not is_certified(promise):
            promise["margin"], promise["answered"] = NOTHING, 0.0
        decision = replace(decision, band=Band.around(0.5, promise["margin"]), promise=promise)
        scores = (known["distance"], known["upright"])
        limits = [np.quantile(rule, share) for rule, share in zip(scores, FeatureGate.passed, strict=True)]
        return cls(decision, np.maximum(limits, 1e-6))

    def apply(self, table: pd.DataFrame) -> pd.DataFrame:
        """Answer films: `margin` (logits from the operating point), `probability`, `gate_score`, `answered`."""
        margin = self.decision.calibration.logits(table["logit"])
        score = np.max([table["distance"] / self.limits[0], table["upright"] / self.limits[1]], axis=0)
        probability = expit(margin)
        sure = self.decision.band.answer(probability) != "look closer"
        return table.assign(margin=margin, probability=probability, gate_score=score, answered=sure & (score <= 1))


@dataclass(frozen=True)
class CrossFit:
    """A method on films: `answers` to each by what was fitted elsewhere, and what all of them give for a new model.

    `read` holds `logit` and `distance` of each film by the net that was fitted without its fold; `rule` is fitted to
    it.
    """

    answers: pd.DataFrame
    read: pd.DataFrame
    rule: LocalRule


def cross_fit(reading: Reading, films: pd.DataFrame, settings: EvaluationSettings, *, nets: bool) -> CrossFit:
    """Cross-fit a method.

    Args:
        reading: fits it without some folds, and reads all films.
        films: `id`, `patient`, `label`, `fold`, `upright` (the gate's second rule), and what else is kept.
        settings: how decisions are chosen.
        nets: whether each fold has a net of its own.
    """
    folds = [int(fold) for fold in np.unique(films["fold"])]
    count = len(folds) if nets else 0

    def read(fold: int, *left_out: int) -> pd.DataFrame:
        here = films["fold"] == fold
        return films[here].join(reading(frozenset({fold, *left_out})).loc[here, ["logit", "distance"]])

    own = {fold: read(fold) for fold in folds}
    answers = []
    for fold in folds:
        elsewhere = pd.concat([read(other, fold) for other in folds if other != fold])
        answers.append(LocalRule.fit(elsewhere, settings, folds=count).apply(own[fold]))
    known = pd.concat(own.values()).sort_index()
    return CrossFit(pd.concat(answers).sort_index(), known, LocalRule.fit(known, settings, folds=count))


@dataclass(frozen=True)
class Measured:
    """How a model, or a method, does on the films: metrics, how much it answers, and how much of that is wrong.

    `against` are the paired tests against the model before.
    """

    name: str
    metrics: dict[str, Estimate]
    answered: Estimate
    error: Estimate
    against: list[Difference]


def measure(
    name: str, table: pd.DataFrame, settings: EvaluationSettings, *, threshold: float, before: pd.DataFrame | None
) -> Measured:
    """Measure answers: `logit`, `probability`, `answered`; `before` is a table with the column `threshold` beside."""
    metrics = bootstrap(table, threshold=threshold, replicates=settings.replicates, seed=settings.seed)
    wrong = (table["probability"] >= threshold) != table["label"].eq(1)
    against: list[Difference] = []
    if before is not None:
        points = (threshold, float(before["threshold"].iloc[0]))
        options = {"replicates": settings.replicates, "seed": settings.seed}
        against = compare(table, before, thresholds=points, names=TESTED, **options)
    given = table["answered"]
    answered, error = share(given, table["patient"]), share(wrong[given], table["patient"][given])
    return Measured(name, metrics, answered, error, against)


def gain(finetuned: pd.DataFrame, before: pd.DataFrame) -> tuple[Estimate, float]:
    """Compare how well two tables of one order rank the films; returns the gain in AUROC and its p-value (DeLong)."""
    scores = finetuned["logit"], before["logit"]
    return delong_difference(before["label"], *scores, before["patient"])
