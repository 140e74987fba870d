"""Reads predictions that runs stored: on validation, and on the folds that their nets never saw."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from scipy.special import logit

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.inference.bundle import read_bundle
from xray_pneumonia.inference.model import TrainedModel
from xray_pneumonia.tracking.store import Store
from xray_pneumonia.tracking.stored_runs import RUN_ID, StoredRun, read_run


def validation_predictions(run: StoredRun) -> pd.DataFrame:
    """Read a run's predictions on its validation split; missing or damaged ones are an InputError."""
    table = predictions.read(run.artifact("predictions/val.csv"))
    predictions.require_usable(table, name=f"run_id={run.run_id}, predictions/val.csv")
    return table


def training_leaks(run: StoredRun, records: pd.DataFrame) -> int | None:
    """Count the images whose very bytes the run was trained on; None where the run does not list them."""
    try:
        trained = pd.read_csv(run.artifact("records.csv"), usecols=["sha256", "split"], dtype=str)
    except (InputError, ValueError):
        return None
    return int(records["sha256"].isin(trained.loc[trained["split"] == "train", "sha256"]).sum())


def read_out_of_fold(names: list[str], open_store: Callable[[], Store]) -> pd.DataFrame | None:
    """Read predictions of nets on images they never saw, for the margin.

    Args:
        names: ids of runs, each on another fold; or files as `predictions/val.csv`, of which the operating point lies
            at 0.5.
        open_store: opens the store that holds the runs.

    Returns:
        `label`, `patient`, `distance` (logits from the net's own operating point) and `net`; None without names.

    Raises:
        InputError: there is no such run or file, or an image is in two of them.
    """
    tables = []
    for name in names:
        if RUN_ID.match(name):
            run = read_run(open_store(), name)
            table, decision = validation_predictions(run), TrainedModel(name, read_bundle(run.bundle())[0]).decision
            distance = decision.calibration.logits(table["logit"]) - logit(decision.threshold)
        else:
            table = predictions.read(Path(name))
            distance = logit(table["probability"])
        tables.append(table.assign(distance=distance, net=name))
    if not tables:
        return None
    joined = pd.concat(tables, ignore_index=True)
    if twice := joined.loc[joined["id"].duplicated(), "id"].tolist():
        raise InputError(
            f"evaluation.out_of_fold: {twice[0]} and {len(twice) - 1} more are in two of {len(names)} tables; name one "
            "run for each fold"
        )
    return joined
