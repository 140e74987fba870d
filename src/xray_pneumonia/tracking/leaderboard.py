"""Makes the view Leaderboard of an experiment: what MLflow's page of runs shows, in which order, with which charts.

MLflow 3.17 keeps a view as an experiment's tag: JSON with a name, times and a state, which is deflated JSON in base64.
"""

import base64
import json
import time
import zlib
from collections.abc import Sequence
from typing import Any

VIEW = "leaderboard"  # id of the view, in its tag and in addresses
TAG = f"mlflow.sharedViewState.{VIEW}"
COLUMNS = (
    "metrics.`best/auroc`",
    "metrics.`operating/sensitivity`",
    "metrics.`operating/specificity`",
    "params.`model`",
    "params.`augmentation`",
    "params.`optimizer.lr`",
    "tags.`state`",
)
NARROW = 105  # pixels, so that all columns fit beside each other
CURVES = {
    "val/auroc": ["val/auroc"],
    "loss": ["train/loss", "val/loss"],
    "accuracy": ["train/accuracy", "val/accuracy"],
}
SEARCHED = ("model", "augmentation", "optimizer.lr")  # axes before there is a sweep


def leaderboard(searched: Sequence[str] = SEARCHED) -> str:
    """Write the view, as the value of the tag `TAG`.

    Args:
        searched: the parameters that are axes of the parallel coordinates.
    """
    now = int(time.time() * 1000)
    state = base64.b64encode(zlib.compress(json.dumps(_state(searched)).encode(), 9)).decode()
    return json.dumps({"name": "Leaderboard", "createdAt": now, "updatedAt": now, "state": f"deflate;{state}"})


def _state(searched: Sequence[str]) -> dict[str, Any]:
    curves, search = "leaderboard-curves", "leaderboard-search"
    lines = [_line(title, metrics, curves) for title, metrics in CURVES.items()]
    parallel = {"selectedParams": list(searched), "selectedMetrics": ["best/auroc"], "showAllRuns": True}
    sections = {curves: "Learning curves", search: "Searched parameters"}
    return {
        "searchFilter": "tags.verb = 'train'",  # a sweep, or an evaluation, is no row of its own
        "orderByKey": COLUMNS[0],
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(COLUMNS),
        "columnOrder": [],
        "columnWidths": dict.fromkeys(COLUMNS, NARROW),
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": [*lines, _card("PARALLEL", search, "Searched parameters", **parallel)],
        "compareRunSections": [
            {"uuid": uuid, "name": name, "display": True, "isReordered": True} for uuid, name in sections.items()
        ],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,  # else MLflow sorts the sections by name
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _line(title: str, metrics: list[str], section: str) -> dict[str, Any]:
    return _card(
        "LINE",
        section,
        title,
        metricKey=metrics[0],
        selectedMetricKeys=metrics,
        lineSmoothness=0,
        xAxisScaleType="linear",
        scaleType="linear",
        range={},
        xAxisKey="step",
        selectedXAxisMetricKey="",
        yAxisKey="metric",
        yAxisExpressions=[],
        ignoreOutliers=False,
        useGlobalXaxisKey=True,
        useGlobalLineSmoothing=True,
    )


def _card(kind: str, section: str, title: str, **more: Any) -> dict[str, Any]:
    """Describe a chart with the keys that MLflow's page writes."""
    head = {
        "uuid": f"leaderboard-{title.replace('/', '-').replace(' ', '-')}",
        "type": kind,
        "metricSectionId": section,
    }
    return {**head, "runsCountToCompare": 20, "deleted": False, "isGenerated": False, "displayName": title, **more}
