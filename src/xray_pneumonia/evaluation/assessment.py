"""Chooses the decision rule on validation, and assesses predictions by it: every number of a report."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit

from xray_pneumonia.evaluation import calibration
from xray_pneumonia.evaluation.abstention import Band, count_answers, fit_band, trade_off
from xray_pneumonia.evaluation.calibration import Calibration, reliability
from xray_pneumonia.evaluation.calibration_check import CalibrationCheck, check_calibration
from xray_pneumonia.evaluation.intervals import Estimate, bootstrap, estimates, predictive_value, replicate
from xray_pneumonia.evaluation.metrics import OF_PROBABILITIES, WeightedMetrics, predictive_values
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.evaluation.subgroups import Subgroup, subgroups
from xray_pneumonia.evaluation.threshold import choose_threshold

FIXED = "fixed at 0.5"  # the policy of a model that was never calibrated


@dataclass(frozen=True)
class Decision:
    """What is chosen on validation and then stays, whatever split is assessed."""

    calibration: Calibration
    threshold: float
    policy: str
    band: Band


def decide(validation: pd.DataFrame, settings: EvaluationSettings, *, fitted: Calibration | None = None) -> Decision:
    """Choose calibration (unless `fitted` is given), operating point and band on raw predictions on validation."""
    if fitted is None:
        fitted = calibration.fit(validation["logit"], validation["label"], method=settings.calibration)
    table = fitted.apply(validation)
    threshold = choose_threshold(table, policy=settings.operating_point)
    band = fit_band(table, error=settings.abstention_error, threshold=threshold)
    return Decision(fitted, threshold, settings.operating_point, band)


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
    probabilities; `calibration` says how much of the error is chance, `bins` is the reliability diagram, `bins_before`
    that of the raw probabilities.
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
    metrics = WeightedMetrics.of(calibrated, threshold=decision.threshold)
    at_point = estimates(metrics, replicate(metrics, **resampling))
    return Assessment(
        table=calibrated,
        decision=decision,
        at_point=at_point,
        at_half=bootstrap(calibrated, threshold=0.5, **resampling),
        uncalibrated={name: before[name] for name in OF_PROBABILITIES},
        delong=at_point["auroc"],
        predictive_values=[_predictive_values(at_point, share) for share in settings.prevalences],
        bins=reliability(calibrated),
        bins_before=reliability(raw),
        subgroups=subgroups(
            calibrated,
            columns=[column for column in settings.subgroups if column in calibrated],
            threshold=decision.threshold,
            replicates=max(100, settings.replicates // 2),
            seed=settings.seed,
        ),
        calibration=check_calibration(calibrated, seed=settings.seed),
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
