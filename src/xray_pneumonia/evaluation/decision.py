"""The decision: all that is chosen on validation and then stands, whatever split is judged."""

from dataclasses import dataclass

import pandas as pd

from xray_pneumonia.evaluation import calibration
from xray_pneumonia.evaluation import threshold as operating
from xray_pneumonia.evaluation.abstention import Band, fit_band
from xray_pneumonia.evaluation.calibration import Calibration
from xray_pneumonia.evaluation.settings import EvaluationSettings

FIXED = "fixed at 0.5"  # the policy of a model that was never calibrated


@dataclass(frozen=True)
class Decision:
    """Calibration, operating point and band."""

    calibration: Calibration
    threshold: float
    policy: str
    band: Band


def decide(validation: pd.DataFrame, settings: EvaluationSettings) -> Decision:
    """Choose calibration, operating point and band on the predictions on validation, in this order."""
    fitted = calibration.fit(validation["logit"], validation["label"], method=settings.calibration)
    return decide_calibrated(validation, fitted, settings)


def decide_calibrated(validation: pd.DataFrame, fitted: Calibration, settings: EvaluationSettings) -> Decision:
    """Choose operating point and band where the calibration is known."""
    table = fitted.apply(validation)
    point = operating.choose(table, policy=settings.operating_point)
    band = fit_band(table, error=settings.abstention_error, threshold=point.threshold)
    return Decision(fitted, point.threshold, point.policy, band)
