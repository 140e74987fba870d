"""Runs `xray review`: ranks training films by how doubtful their labels are, for somebody to look at."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from typing_extensions import TypedDict

from xray_pneumonia.config import Node, anchor, build, check
from xray_pneumonia.data.corrections import EXCLUDE
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.data.images.sandbox import decode_files
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.evaluation.gradcam import thumbnail
from xray_pneumonia.evaluation.input_gate import thumbnails
from xray_pneumonia.evaluation.label_errors import Review, nearest, review_labels
from xray_pneumonia.evaluation.report.build import render
from xray_pneumonia.inference.loading import load_bundle
from xray_pneumonia.inference.model import run_features
from xray_pneumonia.models.features import FeatureNet
from xray_pneumonia.tracking.store import open_existing
from xray_pneumonia.tracking.stored_runs import StoredRun, read_run
from xray_pneumonia.types import Count, Vector
from xray_pneumonia.workflows.compare import find_trainings
from xray_pneumonia.workflows.evaluation_data import EvaluationFolder, open_data
from xray_pneumonia.workflows.stored_predictions import validation_predictions
from xray_pneumonia.workflows.training_run import RECORDS

TABLE, PAGE = "review.csv", "review.html"
LARGE, SMALL = 320, 128  # pixels of a doubted film and of a neighbour on the page
LISTED = 10  # films on the terminal
MEASURED = (  # scripts/benchmarks/review.py
    "of 5 % of the public labels, flipped on purpose, the first 5 % of such a ranking held 88 %; of the films it "
    "doubted 78 % had been flipped"
)
log = logging.getLogger(__name__)


class ReviewedFolder(TypedDict):
    """The key `data` of `xray review`: null means where the runs had it."""

    root: str | None


@dataclass(frozen=True, kw_only=True)
class ReviewConfig:
    """The top-level keys of review.yaml."""

    home: str
    experiment_name: str | None
    sweep_name: str | None
    run_ids: list[str] | None
    extensions: dict[str, str]
    data: ReviewedFolder
    shown: Count
    neighbours: Count
    output: str | None
    tracking: Node


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


def main(cfg: DictConfig) -> None:
    """Rank, write and print."""
    anchor(cfg)
    check(cfg, ReviewConfig)
    settings = build(cfg.tracking)
    if cfg.experiment_name:
        settings = replace(settings, experiment_name=cfg.experiment_name)
    store = open_existing(settings, home=Path(cfg.home))
    runs = find_trainings(store, sweep_name=cfg.sweep_name, run_ids=cfg.run_ids)
    films = open_films(runs, root=cfg.data.root, home=Path(cfg.home))
    review = review_labels(films.predictions)
    folder = Path(cfg.output or Path(cfg.home) / "review" / store.experiment_name).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    predictions.write(tabulate(review, films), folder / TABLE)
    _write_page(folder / PAGE, review, films, runs, shown=cfg.shown, neighbours=cfg.neighbours)
    _print(review, films, Console(width=None if Console().is_terminal else 100))
    print(f"Page: {folder / PAGE}\nTable: {folder / TABLE}")
    print(f"output={folder} films={len(review.films)} doubted={len(review.doubted)}", flush=True)


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
    stored = pd.read_csv(run.artifact(RECORDS), dtype=str, keep_default_na=False).set_index("id")
    films = table["id"]
    now, labels = records.reindex(films), table.set_index("id")["label"]
    differ = now["label"].ne(labels) | now["sha256"].ne(stored["sha256"].reindex(films))
    if differ.any():
        raise InputError(
            f"run_id={run.run_id}: {differ.sum()} of the {len(films)} films it was validated on have other labels or "
            f"bytes than in run {first}, or are not there; name runs of one data set and one state of its labels with "
            "sweep_name=NAME or run_ids=[ID,...]"
        )


def tabulate(review: Review, films: Films) -> pd.DataFrame:
    """List all films in falling order of doubt; with edited labels it is a file for `data.corrections`."""
    names, table = dict(enumerate(films.data.question.names)), review.films
    return pd.DataFrame(
        {
            "path": table["id"],
            "sha256": films.records.loc[table["id"], "sha256"].to_numpy(),
            "label": table["label"].map(names),
            "suggested_label": table["suggested_label"].map(names),
            "doubt": table["doubt"],
            "predictions": table["predictions"],
        }
    )


def _write_page(
    path: Path, review: Review, films: Films, runs: Sequence[StoredRun], *, shown: int, neighbours: int
) -> None:
    rows: list[Any] = review.doubted.head(shown).to_dict("records")
    doubts, names = review.films.set_index("id")["doubt"], films.data.question.names
    cards = list[dict[str, Any]]()
    beside = find_neighbours([row["id"] for row in rows], films, runs, count=neighbours)
    large = _describe(beside, films, side=LARGE)
    small = _describe({one for _, near in beside.values() for one in near}, films, side=SMALL)
    for row in rows:
        by, near = beside[row["id"]]
        cards.append(
            {
                **large[row["id"]],
                **row,
                "suggested": names[row["suggested_label"]],
                "others": [{**small[one], "doubt": doubts.get(one)} for one in near],
                "by": by,
            }
        )
    page = render(
        "review.html",
        figures={},
        cards=cards,
        names=names,
        exclude=EXCLUDE,
        basis=films.basis,
        sentences=sentences(review, films),
        root=films.root,
        runs=[run.run_id for run in runs],
        doubted=len(review.doubted),
    )
    path.write_text(page, encoding="utf-8")


def _describe(names: Iterable[str], films: Films, *, side: int) -> dict[str, Any]:
    """Describe films for the page; their images are decoded anew, since the nets' may be small."""
    records, described = films.records.loc[list(names), ["path", "patient", "sha256", "label", "class_name"]], {}
    for name, one in zip(records.index, decode_files(records.pop("path"), side), strict=True):
        if one.pixels is None:
            raise InputError(f"{one.file.path}: {one.message}")
        described[name] = {"id": name, "picture": thumbnail(one.pixels, side=side), **records.loc[name].to_dict()}
    return described


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


def sentences(review: Review, films: Films) -> list[str]:
    """Word what was found, what it rests on and how far it can be trusted."""
    names, table = films.data.question.names, review.films
    counts = table["label"].value_counts()
    parts = [
        f"about {review.wrong[label]:.0f} of {counts.get(label, 0)} films labelled {names[label]} "
        f"(mean self-confidence {review.thresholds[label]:.3f})"
        for label in (0, 1)
    ]
    found = [f"Estimated to be wrong: {' and '.join(parts)}. A doubt is a reason to look, not a verdict: {MEASURED}."]
    if (corrected := films.data.corrected) and corrected.changed:
        found += [f"L{str(corrected)[1:]}.", _of_changed(review, films)]
    return found


def _of_changed(review: Review, films: Films) -> str:
    """Count how many of the labels that corrections changed are doubted: precision and recall, if they were flips."""
    changed = set(films.records.index[films.records["published"] != films.records["label"]])
    doubted = review.doubted["id"]
    hits = int(doubted.isin(changed).sum())
    first = int(review.films["id"].head(len(changed)).isin(changed).sum())
    return (
        f"Of the {len(changed)} labels that differ from those published, {hits} are among the {len(doubted)} doubted, "
        f"and {first} among the first {len(changed)} films."
    )


def _print(review: Review, films: Films, console: Console) -> None:
    names, doubted = films.data.question.names, review.doubted
    table = Table(title=f"{len(doubted)} films are doubted", title_justify="left", title_style="bold")
    for column in ("film", "label", "suggested", "doubt", "nets"):
        table.add_column(column, justify="right" if column in {"doubt", "nets"} else "left")
    for row in doubted.head(LISTED).to_dict("records"):
        label, suggested = names[row["label"]], names[row["suggested_label"]]
        table.add_row(row["id"], label, suggested, f"{row['doubt']:.3f}", str(row["predictions"]))
    console.print(table)
    for sentence in (f"{films.basis}.", *sentences(review, films)):
        console.print(sentence, highlight=False, markup=False)
