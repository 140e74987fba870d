"""Reads predictions that runs stored: on validation, and on the folds that their nets never saw."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import logit

from xray_pneumonia.data.records import fingerprint
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.evaluation.assessment import CERTAIN, OutOfFold
from xray_pneumonia.evaluation.run_groups import identity
from xray_pneumonia.inference.bundle import read_bundle
from xray_pneumonia.inference.model import TrainedModel
from xray_pneumonia.tracking.store import Store
from xray_pneumonia.tracking.stored_runs import RUN_ID, StoredRun, read_run, search

POINT = "operating/threshold"  # of the probabilities in a run's table
FOLDS, FOLD = "data.folds", "data.fold"
log = logging.getLogger(__name__)


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


def read_out_of_fold(names: list[str], open_store: Callable[[], Store]) -> OutOfFold | None:
    """Read predictions of nets on images they never saw, for the margin.

    Args:
        names: ids of runs, each on another fold; or files as `predictions/val.csv`, of which the operating point lies
            at 0.5.
        open_store: opens the store that holds the runs.

    Returns:
        What they hold; None without names.

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
    return OutOfFold(joined)


def find_siblings(run: StoredRun) -> OutOfFold | None:
    """Find what the nets of all other folds of a stored run's config said, as `read_siblings` does."""
    if run.params.get(FOLDS, "None") == "None" or run.tags.get("verb") != "train":
        return None
    try:
        records = pd.read_csv(run.artifact("records.csv"), dtype=str, keep_default_na=False)
        return read_siblings(run.store, run.params, records)
    except InputError as error:
        log.warning("the other folds of run %s cannot be read: %s", run.run_id, error)
        return None


def read_siblings(store: Store, params: Mapping[str, str], records: pd.DataFrame) -> OutOfFold | None:
    """Read what the nets of all other folds said of the images that they never saw.

    Args:
        store: with the runs, in its experiment.
        params: of a run that is one fold, as its store has them.
        records: its `id`, `sha256`, `label` and `split`.

    Returns:
        The predictions; None unless finished runs of the same config on the same images and labels hold all folds.
    """
    folds, own = int(params[FOLDS]), identity(params, besides=(FOLD,))
    asked_for = ["tags.verb = 'train'", "attributes.status = 'FINISHED'", f"params.`{FOLDS}` = '{folds}'"]
    found: dict[str, pd.DataFrame] = {}
    for run in search(store, asked_for)[::-1]:  # of several runs of a fold the newest counts
        fold, same = run.params[FOLD], own == identity(run.params, besides=(FOLD,))
        if same and run.state == "complete" and POINT in run.metrics and fold not in {*found, params[FOLD]}:
            table = validation_predictions(run)
            if run.tags["records_fingerprint"] == _fingerprint(records, table):
                distance = logit(table["probability"].clip(CERTAIN, 1 - CERTAIN)) - logit(run.metrics[POINT])
                found[fold] = table.assign(distance=distance, net=run.run_id)
    if len(found) < folds - 1:
        message = "%d of %d folds are trained so far: the margin is fitted on the validation split of this one"
        log.info(message, len(found) + 1, folds)
        return None
    return OutOfFold(pd.concat(found.values(), ignore_index=True), siblings=True)


def _fingerprint(records: pd.DataFrame, validation: pd.DataFrame) -> str:
    """Identify the records as a run has them that validates on other images."""
    cut = records["split"].isin(["train", "val"])
    split = np.where(records["id"].isin(validation["id"]), "val", "train")
    return fingerprint(records.assign(split=records["split"].mask(cut, split)))
