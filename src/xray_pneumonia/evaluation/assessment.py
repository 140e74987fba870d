"""The judgement: every number of a report, as pure functions of a table of predictions and a decision."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from xray_pneumonia.evaluation import abstention
from xray_pneumonia.evaluation.calibration import reliability
from xray_pneumonia.evaluation.decision import Decision
from xray_pneumonia.evaluation.intervals import Estimate, bootstrap, delong, estimates, interval, replicate
from xray_pneumonia.evaluation.metrics import OF_PROBABILITIES, Vector, WeightedMetrics, predictive_values
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.evaluation.subgroups import Subgroup, subgroups


@dataclass(frozen=True)
class Worth:
    """What the answers are worth where a share `prevalence` of all patients is ill."""

    prevalence: float
    ppv: Estimate
    npv: Estimate


@dataclass(frozen=True)
class Judgement:
    """All that is known of a model on one split.

    `at_point` holds the metrics at the operating point, `at_half` those at 0.5, `uncalibrated` those of
    the net's own probabilities. `worth` is given at other prevalences, `bins` is the reliability diagram.
    """

    table: pd.DataFrame
    decision: Decision
    at_point: dict[str, Estimate]
    at_half: dict[str, Estimate]
    uncalibrated: dict[str, Estimate]
    delong: Estimate
    worth: list[Worth]
    bins: pd.DataFrame
    bins_before: pd.DataFrame
    subgroups: list[Subgroup]
    answers: pd.DataFrame
    trade_off: pd.DataFrame

    @property
    def images(self) -> int:
        """How many images it rests on."""
        return len(self.table)

    @property
    def patients(self) -> int:
        """How many patients it rests on."""
        return int(self.table["patient"].nunique())

    def metrics(self) -> dict[str, float]:
        """Flatten to names and values, with `_low` and `_high` for the intervals; NaN is left out."""
        flat: dict[str, float] = {}
        for name, estimate in self.at_point.items():
            flat |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return {name: value for name, value in flat.items() if not np.isnan(value)}


def judge(
    table: pd.DataFrame, decision: Decision, settings: EvaluationSettings, *, validation: pd.DataFrame | None
) -> Judgement:
    """Judge a table of predictions.

    Args:
        table: predictions of the split, raw; columns of the records may be joined to it.
        decision: what was chosen on validation.
        settings: what is asked for.
        validation: predictions on validation, raw, for the curve of coverage against accuracy; None where they are
            not at hand, and the curve stays empty.
    """
    calibrated = decision.calibration.apply(table)
    known = None if validation is None else decision.calibration.apply(validation)
    raw = table.assign(probability=1 / (1 + np.exp(-table["logit"])))
    half = bootstrap(calibrated, threshold=0.5, replicates=settings.replicates, seed=settings.seed)
    before = bootstrap(raw, threshold=0.5, replicates=settings.replicates, seed=settings.seed)
    at_point, worth = _at_point(calibrated, decision.threshold, settings)
    return Judgement(
        table=calibrated,
        decision=decision,
        at_point=at_point,
        at_half=half,
        uncalibrated={name: before[name] for name in OF_PROBABILITIES},
        delong=delong(calibrated["label"], calibrated["logit"], calibrated["patient"]),
        worth=worth,
        bins=reliability(calibrated),
        bins_before=reliability(raw),
        subgroups=subgroups(
            calibrated,
            columns=[column for column in settings.subgroups if column in calibrated],
            threshold=decision.threshold,
            replicates=max(100, settings.replicates // 2),
            seed=settings.seed,
        ),
        answers=abstention.outcomes(calibrated, decision.band),
        trade_off=abstention.trade_off(known, calibrated, threshold=decision.threshold),
    )


def _at_point(
    table: pd.DataFrame, threshold: float, settings: EvaluationSettings
) -> tuple[dict[str, Estimate], list[Worth]]:
    """Estimate the metrics, and from the same replicates the predictive values at other prevalences."""
    metrics = WeightedMetrics.of(table, threshold=threshold)
    samples = replicate(metrics, replicates=settings.replicates, seed=settings.seed)
    values, at_point = metrics.once(), estimates(metrics, samples)
    worth = []
    for prevalence in settings.prevalences:
        once = predictive_values(values["sensitivity"], values["specificity"], prevalence=prevalence)
        many = predictive_values(samples["sensitivity"], samples["specificity"], prevalence=prevalence)
        worth.append(Worth(prevalence, *(_spread(float(one), all_) for one, all_ in zip(once, many, strict=True))))
    return at_point, worth


def _spread(value: float, samples: Vector) -> Estimate:
    return interval(value, samples)
