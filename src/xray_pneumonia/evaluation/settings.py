"""What an evaluation is asked to do: the config group `evaluation`."""

import copy
from typing import Annotated, Self

from annotated_types import Ge

from xray_pneumonia.evaluation.calibration import Method
from xray_pneumonia.evaluation.threshold import parse
from xray_pneumonia.types import Count, OpenFraction, Seed, Whole


class EvaluationSettings:
    """How a model is judged, and how its operating point and calibration are chosen on validation.

    Args:
        operating_point: the policy: `youden`, `middle`, `sensitivity>=x`, `specificity>=x` or `cost=c`.
        calibration: `temperature`, `platt` or `none`.
        abstention_error: the share of either class that the band may answer wrongly.
        replicates: patients are resampled so often for every interval.
        prevalences: at which predictive values are given.
        subgroups: columns of the records by which the table is cut.
        maps: heat maps of each kind of case; 0 draws none.
        robustness_images: about so many images go through every corruption; 0 leaves it out, null takes all.
        report: write report, figures and maps; sweeps may do without.
        seed: of resampling and corruptions.
    """

    def __init__(
        self,
        *,
        operating_point: str,
        calibration: Method,
        abstention_error: OpenFraction,
        replicates: Annotated[int, Ge(100)],
        prevalences: list[OpenFraction],
        subgroups: list[str],
        maps: Whole,
        robustness_images: Whole | None,
        report: bool,
        seed: Seed,
    ) -> None:
        parse(operating_point)
        self.operating_point, self.calibration, self.abstention_error = operating_point, calibration, abstention_error
        self.replicates: Count = replicates
        self.prevalences, self.subgroups = prevalences, subgroups
        self.maps, self.robustness_images, self.report, self.seed = maps, robustness_images, report, seed

    def with_policy(self, operating_point: str) -> Self:
        """Ask for another policy, all else alike.

        Raises:
            InputError: there is no such policy.
        """
        parse(operating_point)
        other = copy.copy(self)
        other.operating_point = operating_point
        return other
