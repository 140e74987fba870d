"""Runs `xray review`: ranks training films by how doubtful their labels are, for somebody to look at."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from typing_extensions import TypedDict

from xray_pneumonia.config import Node, check
from xray_pneumonia.data.corrections import EXCLUDE
from xray_pneumonia.data.images.sandbox import decode_files
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.evaluation.gradcam import thumbnail
from xray_pneumonia.evaluation.label_errors import Review, review_labels
from xray_pneumonia.evaluation.report.build import render
from xray_pneumonia.terminal import console, make_table
from xray_pneumonia.tracking.run import Run, start_run
from xray_pneumonia.tracking.stored_runs import StoredRun
from xray_pneumonia.types import Count, Text
from xray_pneumonia.whole_files import private, write_whole
from xray_pneumonia.workflows.find_runs import find_trainings, open_experiment, output_folder
from xray_pneumonia.workflows.reviewed_films import Films, find_neighbours, open_films
from xray_pneumonia.workflows.training_run import DESCRIPTION, record_origin

TABLE, PAGE = "review.csv", "review.html"
LARGE, SMALL = 320, 128  # pixels of a doubted film and of a neighbour on the page
LISTED = 10  # films on the terminal
MEASURED = (  # scripts/benchmarks/review.py
    "of 5 % of the public labels, flipped on purpose, the first 5 % of such a ranking held 88 %; of the films it "
    "doubted 78 % had been flipped"
)


class ReviewedFolder(TypedDict):
    """The key `data` of `xray review`: null means where the runs had it."""

    root: Text | None


@dataclass(frozen=True, kw_only=True)
class ReviewConfig:
    """The top-level keys of review.yaml."""

    home: Text
    experiment_name: Text | None
    sweep_name: Text | None
    run_ids: list[Text] | None
    extensions: dict[str, str]
    data: ReviewedFolder
    shown: Count
    neighbours: Count
    output: Text | None
    tracking: Node


def main(cfg: DictConfig) -> None:
    """Rank, write and print."""
    check(cfg, ReviewConfig)
    store = open_experiment(cfg)
    runs = find_trainings(store, sweep_name=cfg.sweep_name, run_ids=cfg.run_ids)
    films = open_films(runs, root=cfg.data.root, home=Path(cfg.home))
    review = review_labels(films.predictions)
    tags = {"verb": "review", "reviews": ",".join(run.run_id for run in runs)}
    name = cfg.tracking.run_name or f"review of {Path(films.root).name}"
    with start_run(store, name=name, tags=tags, system_metrics=False) as run:
        with private(team=cfg.output is None):
            folder = output_folder(cfg, "review", store)
            predictions.write(tabulate(review, films), folder / TABLE)
            _write_page(folder / PAGE, review, films, runs, shown=cfg.shown, neighbours=cfg.neighbours)
        with private(team=True):
            _record(run, cfg, review, films, folder)
    _print(review, films)
    print(f"Page: {folder / PAGE}\nTable: {folder / TABLE}\nSee it: {run.see_it}")
    print(f"output={folder} films={len(review.films)} doubted={len(review.doubted)}", flush=True)


def _record(run: Run, cfg: DictConfig, review: Review, films: Films, folder: Path) -> None:
    """Record what was reviewed and found, with copies of page and table."""
    record_origin(run, cfg, films.data.records, root=films.root, stage="review")
    run.set_tags({DESCRIPTION: " ".join([f"{films.basis}.", *sentences(review, films)])})
    counts = {"films": len(review.films), "doubted": len(review.doubted)}
    run.log_metrics({f"review/{name}": n for name, n in {**counts, **count_changed(review, films)}.items()})
    for file in (TABLE, PAGE):
        copyfile(folder / file, run.path(f"review/{file}"))


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
    write_whole(path, [page.encode()])


def _describe(names: Iterable[str], films: Films, *, side: int) -> dict[str, Any]:
    """Describe films for the page; their images are decoded anew, since the nets' may be small."""
    records, described = films.records.loc[list(names), ["path", "patient", "sha256", "label", "class_name"]], {}
    for name, one in zip(records.index, decode_files(records.pop("path"), side), strict=True):
        if one.pixels is None:
            raise InputError(f"{one.file.path}: {one.message}")
        described[name] = {"id": name, "picture": thumbnail(one.pixels, side=side), **records.loc[name].to_dict()}
    return described


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


def count_changed(review: Review, films: Films) -> dict[str, float]:
    """Count labels that corrections changed and which are found; precision and recall hold if they were flips."""
    published = films.records.get("published", films.records["label"])
    changed = set(films.records.index[published != films.records["label"]])
    doubted, first = (ids.isin(changed).sum() for ids in (review.doubted["id"], review.films["id"].head(len(changed))))
    if not changed:
        return {}
    rates = {"precision": doubted / max(1, len(review.doubted)), "recall": doubted / len(changed)}
    return {"changed": len(changed), "changed_doubted": doubted, "changed_first": first, **rates}


def _of_changed(review: Review, films: Films) -> str:
    known, doubted = count_changed(review, films), len(review.doubted)
    return (
        f"Of the {known['changed']} labels that differ from those published, {known['changed_doubted']} are among the "
        f"{doubted} doubted, and {known['changed_first']} among the first {known['changed']} films."
    )


def _print(review: Review, films: Films) -> None:
    names, doubted = films.data.question.names, review.doubted
    heads = ("film", "label", "suggested", "doubt", "nets")
    rows = make_table(f"{len(doubted)} films are doubted", heads, right=("doubt", "nets"))
    for row in doubted.head(LISTED).to_dict("records"):
        label, suggested = names[row["label"]], names[row["suggested_label"]]
        rows.add_row(row["id"], label, suggested, f"{row['doubt']:.3f}", str(row["predictions"]))
    console(100).print(rows, f"{films.basis}.", *sentences(review, films), sep="\n")
