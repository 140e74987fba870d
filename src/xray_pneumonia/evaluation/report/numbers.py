"""Writes every number of a report as JSON."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from xray_pneumonia.evaluation.report.build import Report


def as_json(report: "Report") -> str:
    """Write the numbers; what is undefined is null."""
    context, assessment = report.context, report.assessment
    numbers: dict[str, Any] = {
        "model": context.model,
        "split": context.split,
        "classes": context.classes,
        "left_out": context.left_out,
        "corrections": context.corrections,
        **({"as_published": report.published} if context.corrections else {}),
        "run_ids": context.run_ids,
        "images": assessment.images,
        "patients": assessment.patients,
        "openings": len(context.openings),
        "leaks": context.leaks,
        "elsewhere": context.elsewhere,
        "decision": asdict(assessment.decision),
        "at_operating_point": {name: asdict(one) for name, one in assessment.at_point.items()},
        "at_0.5": {name: asdict(one) for name, one in assessment.at_half.items()},
        "uncalibrated": {name: asdict(one) for name, one in assessment.uncalibrated.items()},
        "delong": asdict(assessment.delong),
        "calibration": asdict(assessment.calibration),
        "prevalence": [asdict(one) for one in assessment.predictive_values],
        "subgroups": [asdict(one) | {"few": one.few} for one in assessment.subgroups],
        "parts": [asdict(one) for one in report.parts],
        "shortcuts": {name: asdict(one) for name, one in report.shortcuts.items()},
        "gate": report.gate,
        "drift": None if report.drift is None else asdict(report.drift),
        "maps": report.maps.facts if report.maps else {},
        "differences": [asdict(one) for one in report.differences],
        "robustness": [] if report.robustness is None else report.robustness.to_dict("records"),
    }
    return json.dumps(_finite(numbers), indent=2, default=float)


def _finite(tree: Any) -> Any:
    """Replace NaN, which is no JSON, by null."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not np.isfinite(tree) else tree
