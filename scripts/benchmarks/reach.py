"""How soon do trainings reach the best validation accuracy of another one?

Usage: python scripts/benchmarks/reach.py HOME BASELINE_RUN_ID RUN_ID ...

Reads the epochs that the runs logged into HOME/mlflow.db: `val/accuracy` at threshold 0.5, and the seconds of each
epoch. All must have validated on the same records. Train them alternately, with as many threads and as much company.
"""

import argparse
from itertools import accumulate
from pathlib import Path

from xray_pneumonia.tracking.store import Store, TrackingSettings, open_database
from xray_pneumonia.tracking.stored_runs import get

METRIC = "val/accuracy"


def main() -> None:
    """Print, for each run, the first epoch as good as the best of the baseline, and the ratio of their times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path)
    parser.add_argument("baseline")
    parser.add_argument("runs", nargs="+")
    asked = parser.parse_args()
    settings = TrackingSettings(uri=None, experiment_name="xray", run_name=None, system_metrics=False, required=True)
    store = open_database(settings, home=asked.home.resolve())
    goal = best(store, asked.baseline)
    baseline = reached(store, asked.baseline, goal)
    assert baseline is not None
    print(f"to reach a validation accuracy of {goal:.4f}")
    for run_id in [asked.baseline, *asked.runs]:
        found, told = get(store, run_id), reached(store, run_id, goal)
        if told is None:
            print(f"  {run_id[:8]} {found.name:24} never: {best(store, run_id):.4f} at most")
        else:
            print(f"  {run_id[:8]} {found.name:24} epoch {told[0]:3}, {told[1]:6.0f} s: {told[1] / baseline[1]:.2f}")


def best(store: Store, run_id: str) -> float:
    """Return the best validation accuracy of a run."""
    return max(value for _, value in get(store, run_id).history(METRIC))


def reached(store: Store, run_id: str, goal: float) -> tuple[int, float] | None:
    """Return the first epoch that is at least as good (from 1), and the seconds of all epochs up to it."""
    spent = accumulate(seconds for _, seconds in get(store, run_id).history("time/epoch_seconds"))
    accuracies = (value for _, value in get(store, run_id).history(METRIC))
    return next(
        ((epoch, at) for epoch, (value, at) in enumerate(zip(accuracies, spent, strict=True), 1) if value >= goal), None
    )


if __name__ == "__main__":
    main()
