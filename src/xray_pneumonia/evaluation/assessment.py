"""Chooses the decision rule on validation, and assesses predictions by it: every number of a report."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation import calibration
from xray_pneumonia.evaluation.abstention import Band, Promise, count_answers, fit_promise, trade_off
from xray_pneumonia.evaluation.calibration import Calibration, reliability, translate
from xray_pneumonia.evaluation.calibration_check import CalibrationCheck, check_calibration
from xray_pneumonia.evaluation.intervals import Estimate, bootstrap, estimates, predictive_value, replicate
from xray_pneumonia.evaluation.metrics import OF_PROBABILITIES, WeightedMetrics, predictive_values
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.evaluation.subgroups import Subgroup, subgroups
from xray_pneumonia.evaluation.threshold import choose_threshold

FIXED = "fixed at 0.5"  # the policy of a model that was never calibrated
CERTAIN = 1e-12  # no operating point is nearer to 0 or 1


@dataclass(frozen=True)
class OutOfFold:
    """Predictions of other nets on images that they never saw, which a margin is fitted on.

    `table` has `label`, `patient`, `distance` (logits from the net's own operating point) and `net`. Those of
    `siblings`, the nets of all other folds, are completed by the own ones on validation.
    """

    table: pd.DataFrame
    siblings: bool = False


@dataclass(frozen=True)
class Decision:
    """What is chosen on validation and then stays, whatever split is assessed.

    `threshold` and `band` are probabilities at the calibration's prevalence. `promise` is None in models of version
    0.1.0, whose band promised another thing, and where the operating point was moved since.
    """

    calibration: Calibration
    threshold: float
    policy: str
    band: Band
    promise: Promise | None = None

    def at(self, prevalence: float, *, cost: float | None = None) -> "Decision":
        """Show probabilities where a share `prevalence` is ill; labels stay, unless a miss costs `cost` false alarms.

        With a cost the operating point goes where both errors cost the same: at a probability of 1 / (1 + cost).

        Raises:
            InputError: the model names no prevalence of its own.
        """
        shown = self.calibration.prevalence
        if shown is None:
            raise InputError(
                f"prevalence={prevalence:g}: this model was stored by a version that kept no prevalence with its "
                "probabilities, so they cannot be translated; use a newer model, or for a run `xray evaluate "
                "operating_point=POLICY`, which calibrates it anew"
            )
        moved = self.calibration.at(prevalence)
        if cost is not None:
            point, margin = 1 / (1 + cost), self.promise["margin"] if self.promise else 0.0
            return Decision(moved, point, f"cost:{cost:g}@{100 * prevalence:g}%", Band.around(point, margin))
        known = [self.threshold, self.band.low, self.band.high]
        point, low, high = (float(one) for one in translate(known, prevalence=shown, to=prevalence))
        return replace(self, calibration=moved, threshold=point, band=Band(low, high))


def decide(
    validation: pd.DataFrame,
    settings: EvaluationSettings,
    *,
    fitted: Calibration | None = None,
    out_of_fold: OutOfFold | None = None,
) -> Decision:
    """Choose calibration (unless `fitted` is given), operating point and margin on raw predictions on validation.

    Probabilities are shown at the prevalence at which the operating point lies at 0.5.

    Args:
        validation: raw predictions.
        settings: how to choose.
        fitted: a calibration that stays.
        out_of_fold: what the margin is fitted on instead.
    """
    share = float(validation["label"].mean())
    if fitted is None:
        fitted = calibration.fit(validation["logit"], validation["label"], method=settings.calibration)
    fitted = fitted.naming(share)
    threshold = choose_threshold(fitted.at(share).apply(validation), policy=settings.operating_point)
    point = np.clip(threshold, CERTAIN, 1 - CERTAIN)
    shown = fitted.at(float(translate(share, prevalence=float(point), to=0.5)))
    decision = Decision(shown, 0.5, settings.operating_point, Band(0.5, 0.5))
    return promising(decision, validation, out_of_fold, max_error=settings.max_error)


def promising(
    decision: Decision, validation: pd.DataFrame, out_of_fold: OutOfFold | None, *, max_error: float
) -> Decision:
    """Fit the margin around a decision's operating point, on raw predictions on validation or out of fold."""
    distance = decision.calibration.logits(validation["logit"]) - logit(decision.threshold)
    known, folds = validation.assign(distance=distance, net=""), 0
    if out_of_fold is not None:
        known = pd.concat([out_of_fold.table, known]) if out_of_fold.siblings else out_of_fold.table
        folds = int(known["net"].nunique())
    promise = fit_promise(
        known["distance"].to_numpy(), known["label"], known["patient"], max_error=max_error, folds=folds
    )
    return replace(decision, band=Band.around(decision.threshold, promise["margin"]), promise=promise)


@dataclass(frozen=True)
class PredictiveValues:
    """What an answer is worth where a share `prevalence` of all patients is ill."""

    prevalence: float
    ppv: Estimate
    npv: Estimate


@dataclass(frozen=True)
class Assessment:
    """All that is measured of a model on one split.

    `at_point` holds the metrics at the operating point, `at_half` those at 0.5, `uncalibrated` those of the raw
    probabilities; `calibration` says how much of the error is chance, `bins` is the reliability diagram, of
    the same evidence at the split's own prevalence, `bins_before` that of the raw probabilities.
    """

    table: pd.DataFrame
    decision: Decision
    at_point: dict[str, Estimate]
    at_half: dict[str, Estimate]
    uncalibrated: dict[str, Estimate]
    delong: Estimate
    predictive_values: list[PredictiveValues]
    bins: pd.DataFrame
    bins_before: pd.DataFrame
    subgroups: list[Subgroup]
    calibration: CalibrationCheck
    answers: pd.DataFrame
    trade_off: pd.DataFrame

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.table)

    @property
    def patients(self) -> int:
        """Number of patients."""
        return int(self.table["patient"].nunique())

    @property
    def fewest(self) -> int:
        """Number of patients of the rarer class."""
        return int(self.table.groupby("label")["patient"].nunique().reindex([0, 1], fill_value=0).min())

    def metrics(self) -> dict[str, float]:
        """List the metrics at the operating point; their intervals stand in the report, and NaN is left out."""
        flat = {name: one.value for name, one in self.at_point.items()}
        flat |= {"calibration_floor": self.calibration.floor, "calibration_excess": self.calibration.excess}
        flat |= {"calibration_slope": self.calibration.slope.value}
        flat |= {"calibration_intercept": self.calibration.intercept.value}
        return {name: value for name, value in flat.items() if not np.isnan(value)}


def assess(
    table: pd.DataFrame, decision: Decision, settings: EvaluationSettings, *, validation: pd.DataFrame | None
) -> Assessment:
    """Assess a table of raw predictions, to which columns of the records may be joined.

    The curve of coverage against accuracy needs raw predictions on `validation`; without them it is empty.
    """
    calibrated, raw = decision.calibration.apply(table), table.assign(probability=expit(table["logit"]))
    resampling = {"replicates": settings.replicates, "seed": settings.seed}
    before = bootstrap(raw, threshold=0.5, **resampling)
    shown, share = decision.calibration.prevalence, float(table["label"].mean())
    metrics = WeightedMetrics.of(calibrated, threshold=decision.threshold, prevalence=shown)
    at_point = estimates(metrics, replicate(metrics, **resampling))
    at_half = bootstrap(calibrated, threshold=0.5, **resampling)
    here = decision.calibration.at(share) if shown and 0 < share < 1 else decision.calibration
    return Assessment(
        table=calibrated,
        decision=decision,
        at_point=at_point,
        at_half=at_half | {name: at_point[name] for name in OF_PROBABILITIES},
        uncalibrated={name: before[name] for name in OF_PROBABILITIES},
        delong=at_point["auroc"],
        predictive_values=[_predictive_values(at_point, share) for share in settings.prevalences],
        bins=reliability(here.apply(table)),
        bins_before=reliability(raw),
        subgroups=subgroups(
            calibrated,
            columns=[column for column in settings.subgroups if column in calibrated],
            threshold=decision.threshold,
            replicates=max(100, settings.replicates // 2),
            seed=settings.seed,
        ),
        calibration=check_calibration(calibrated, seed=settings.seed, prevalence=shown),
        answers=count_answers(calibrated, decision.band),
        trade_off=trade_off(
            None if validation is None else decision.calibration.apply(validation),
            calibrated,
            threshold=decision.threshold,
        ),
    )


def _predictive_values(at: dict[str, Estimate], prevalence: float) -> PredictiveValues:
    found, cleared, odds = at["sensitivity"], at["specificity"], (1 - prevalence) / prevalence
    ppv, npv = (float(one) for one in predictive_values(found.value, cleared.value, prevalence=prevalence))
    return PredictiveValues(
        prevalence,
        predictive_value(found, cleared, value=ppv, odds=odds),
        predictive_value(cleared, found, value=npv, odds=1 / odds),
    )
