"""Defines the config group `evaluation`: how a model is assessed, and what is chosen on validation."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from xray_pneumonia.evaluation.calibration import Method
from xray_pneumonia.evaluation.threshold import parse_policy
from xray_pneumonia.types import OpenFraction, Seed, Text, Whole


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The config group `evaluation`; `conf/evaluation/standard.yaml` explains each key.

    Raises:
        InputError: there is no such policy.
    """

    operating_point: Text
    calibration: Method
    max_error: OpenFraction
    out_of_fold: list[Text] | None
    replicates: Annotated[int, Ge(100)]
    prevalences: list[OpenFraction]
    subgroups: list[Literal["subtype", "mode", "published", "width", "height", "bytes"]]
    maps: Whole
    robustness_images: Whole | None
    report: bool
    seed: Seed

    def __post_init__(self) -> None:
        """Check the policy."""
        parse_policy(self.operating_point)
