"""Opens the films under review with the predictions of nets that never saw them; finds their nearest neighbours."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.input_gate import thumbnails
from xray_pneumonia.evaluation.label_errors import nearest
from xray_pneumonia.inference.loading import load_bundle
from xray_pneumonia.inference.model import run_features
from xray_pneumonia.models.features import FeatureNet
from xray_pneumonia.tracking.stored_runs import StoredRun, read_run
from xray_pneumonia.types import Vector
from xray_pneumonia.workflows.evaluation_data import EvaluationFolder, open_data
from xray_pneumonia.workflows.stored_predictions import validation_predictions
from xray_pneumonia.workflows.training_run import RECORDS, read_records

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Films:
    """The films under review and what the runs know of them.

    `records` are those of training and validation, indexed by id, with their `row` in the images; `predictions` has a
    row for each film and run that was not trained on it.
    """

    root: str
    data: XRayDataModule
    records: pd.DataFrame
    predictions: pd.DataFrame

    @property
    def judges(self) -> pd.Series:
        """The first run of each film that was not trained on it."""
        return self.predictions.groupby("id")["net"].first()

    @property
    def basis(self) -> str:
        """Word what the ranking rests on."""
        counts = self.predictions.groupby("id").size()
        lacking = len(self.records) - len(counts)
        return (
            f"{len(counts)} films of {self.records.loc[counts.index, 'patient'].nunique()} patients, each judged by "
            f"{counts.min()} to {counts.max()} of {self.predictions['net'].nunique()} nets, none of which was "
            f"trained on it{f'; {lacking} films were in no fold and are not reviewed' if lacking else ''}"
        )


def open_films(runs: Sequence[StoredRun], *, root: str | None, home: Path) -> Films:
    """Open the films of some runs, which must all have been trained on the same films under the same labels.

    Raises:
        InputError: they were not.
    """
    first = read_run(runs[0].store, runs[0].run_id)
    folder = EvaluationFolder(root=root, broken=None, positive=None, negative=None, patient=None)
    data, stored = open_data(first, "val", folder=folder, home=home)
    records = data.records.assign(row=np.arange(len(data.records)))
    records = records[records["split"].isin(["train", "val"])].set_index("id")
    tables = [validation_predictions(run)[["id", "label", "logit"]].assign(net=run.run_id) for run in runs]
    for run, table in zip(runs, tables, strict=True):
        _require_same(run, table, records, first=first.run_id)
    return Films(stored.data.root, data, records, pd.concat(tables, ignore_index=True))


def _require_same(run: StoredRun, table: pd.DataFrame, records: pd.DataFrame, *, first: str) -> None:
    """Refuse a run that judged other films, other bytes of them, or other labels than the first one."""
    stored = read_records(run.artifact(RECORDS))
    films = table["id"]
    now, labels = records.reindex(films), table.set_index("id")["label"]
    differ = now["label"].ne(labels) | now["sha256"].ne(stored["sha256"].reindex(films))
    if differ.any():
        raise InputError(
            f"run_id={run.run_id}: {differ.sum()} of the {len(films)} films it was validated on have other labels or "
            f"bytes than in run {first}, or are not there; name runs of one data set and one state of its labels with "
            "sweep_name=NAME or run_ids=[ID,...]"
        )


def find_neighbours(
    names: Sequence[str], films: Films, runs: Sequence[StoredRun], *, count: int
) -> dict[str, tuple[str, list[str]]]:
    """Find the nearest films of other patients, in the features of a net that was not trained on the film.

    Returns:
        For each of the names, what the distance is of, and the neighbours' names.
    """
    judges, known = films.judges, {run.run_id: run for run in runs}
    ids, patients = films.records.index.to_numpy(), films.records["patient"].to_numpy()
    place = {name: row for row, name in enumerate(ids)}
    found = {}
    for run_id in dict.fromkeys(judges.loc[list(names)]):
        by, features = _features(known[run_id], films)
        for name in (one for one in names if judges[one] == run_id):
            near = nearest(features, place[name], patients, count=count)
            found[name] = (by, ids[near].tolist())
    return found


def _features(run: StoredRun, films: Films) -> tuple[str, Vector]:
    """Compute the features (N, D) of all films by a run's net; without one, by thumbnails."""
    images = np.asarray(films.data.images[films.records["row"].to_numpy()])
    try:
        model = load_bundle(run.bundle(), name=run.run_id)
        net = FeatureNet(model.require_net(), side=model.card.image_size)
        if net.width and model.card.image_size == films.data.image_size:
            return f"features of run {run.run_id[:8]}", run_features(net, images, progress="Comparing films")[1]
    except (InputError, ValueError) as error:
        log.warning("neighbours of its films are found by thumbnails: %s", error)
    return "thumbnails", thumbnails(images)
