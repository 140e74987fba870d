"""Summarises the answers to all files: a table on the terminal, and the contact sheet, one HTML page of thumbnails."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from heapq import nsmallest
from pathlib import Path

import numpy as np
import pandas as pd
from rich.text import Text

from xray_pneumonia.data.files import find_films, printable
from xray_pneumonia.data.images.sandbox import Decoders
from xray_pneumonia.evaluation.drift import Drift, Home, compare_with_home, evidence_of
from xray_pneumonia.evaluation.gradcam import read_overlay, thumbnail
from xray_pneumonia.evaluation.quality import FLAGS
from xray_pneumonia.evaluation.report import text
from xray_pneumonia.evaluation.report.build import render
from xray_pneumonia.evaluation.report.model_card import USE, limitations
from xray_pneumonia.evaluation.report.text import percent
from xray_pneumonia.inference.bundle import Card
from xray_pneumonia.inference.model import UNCERTAIN, TrainedModel
from xray_pneumonia.terminal import console, make_table
from xray_pneumonia.types import spoken
from xray_pneumonia.whole_files import write_whole
from xray_pneumonia.workflows.prediction_files import TABLE, Row

SHEET = "contact_sheet.html"
SIDE = 160  # pixels of a thumbnail, at most; the model's image size where that is smaller
MEASURED = ["gate_score", "called", "brightness", "side", "evidence"]  # of each answered file
LISTED = 200  # failed files on the page, at most


def meanings(card: Card) -> dict[str, str]:
    """Word what each answer of a model means."""
    negative, positive = card.answers.values()
    return {
        "look closer": "too near the operating point, or no film of the kind it knows",
        positive: f"speaks for {positive}",
        negative: f"speaks against {positive}; other findings are unseen",
    }


def meaning(card: Card, row: Row) -> str:
    """Word what the answer to one film means; figures of films that it does not resemble do not hold for it."""
    if row["reason"] == UNCERTAIN:
        return "too near the operating point"
    return f"{row['reason']}: the figures need not hold for it" if row["reason"] else meanings(card)[row["decision"]]


@dataclass
class Summary:
    """Counts of all rows, the rows that are shown (the least certain first) and the first failed files.

    `measured` holds what `drift` rests on, the columns `MEASURED`.
    """

    positive: str  # the class with label 1
    files: int = 0
    decisions: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    shown: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)
    measured: list[tuple[float, int, float, int, float]] = field(default_factory=list)
    drift: Drift | None = None

    def count(self, row: Row) -> bool:
        """Count a row; returns whether it holds an answer."""
        self.files += 1
        if row["error"]:
            self.failures[row["error"]] += 1
            self.failed += [row] if len(self.failed) < LISTED else []
            return False
        self.decisions[row["decision"]] += 1
        self.flags.update(row["flags"])
        if row.get("gate_score") is not None:
            called = int(row["label"] == self.positive)
            side = max(row["width"], row["height"])
            evidence = evidence_of(row["probability"], row["prevalence"] or np.nan).item()
            self.measured.append((row["gate_score"], called, row["brightness"], side, evidence))
        return True


def summarise(rows: Iterable[Row], *, shown: int, positive: str, home: Home | None) -> Summary:
    """Count in one pass, which keeps no more rows than are shown; compare the films with the model's home, if known."""
    summary = Summary(positive)
    summary.shown = nsmallest(max(1, shown), filter(summary.count, rows), key=_certainty)[:shown]  # of none reads none
    if home is not None and summary.measured:
        films = pd.DataFrame(summary.measured, columns=MEASURED)
        summary.drift = compare_with_home(films, home, positive=positive)
    return summary


def _certainty(row: Row) -> tuple[bool, float]:
    return row["decision"] != "look closer", abs(row["probability"] - row["operating_point"])


def write_sheet(folder: Path, summary: Summary, model: TrainedModel, decoders: Decoders, source: Path) -> None:
    """Write the page; its images are decoded again, so that a continued run shows the old ones too."""
    rows = {row["path"]: row for row in summary.shown}
    pictures: dict[str, str] = {}
    for attempt in decoders.read(file for file in find_films(source) if file.id in rows):
        if attempt.pixels is not None:
            pictures[attempt.file.id] = thumbnail(attempt.pixels, side=SIDE)
    maps = {
        row["path"]: thumbnail(read_overlay(folder / row["heat_map"]), side=SIDE)
        for row in summary.shown
        if row["heat_map"] and (folder / row["heat_map"]).is_file()
    }
    page = render(
        "contact_sheet.html",
        figures={},
        outcome=summary,
        means=meanings(model.card),
        pictures=pictures,
        maps=maps,
        meanings=FLAGS,
        source=printable(str(source)),
        model=model.name,
        card=model.card,
        band=model.band,
        rests=describe_evidence(model.card),
        meaning=word_probability(model.card),
        promise=word_promise(summary, model.card),
        use=USE,
        limits=limitations(model.card.classes),
        tones=dict(zip(meanings(model.card), ("closer", "positive", "negative"), strict=True)),
        when=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )
    write_whole(folder / SHEET, [page.encode()])


def word_promise(summary: Summary, card: Card) -> str:
    """Word what is promised of the answers: nothing where the films are not the model's."""
    strange = summary.drift is not None and summary.drift.differs
    return "Nothing is promised of answers to such films." if strange else text.promise(card.promise)


def word_probability(card: Card) -> Callable[[float], str]:
    """Make the function that words what a probability says of a film."""
    finding = spoken(card.class_names[1])
    return partial(text.meaning, prevalence=card.prevalence, threshold=card.operating_point, finding=finding)


def describe_evidence(card: Card) -> str:
    """Describe in one or two sentences on which images the model was trained and validated."""
    known = card.evidence
    if not known:
        return "The model's card does not say on how many patients it was trained and validated."
    negative, positive = card.answers.values()
    found = f"the {positive}s" if positive == "pneumonia" else f"the films of {positive}"
    return (
        f"Trained on {known['train/images']:.0f} films of {known['train/patients']:.0f} patients. On "
        f"{known['val/images']:.0f} films of {known['val/patients']:.0f} patients it was not trained on, from the same "
        f"source, it found {percent(known['val/sensitivity'])} of {found} and cleared "
        f"{percent(known['val/specificity'])} of the {negative} films (AUROC {known['val/auroc']:.3f}); "
        "the operating point was chosen on them, so this flatters."
        f" {text.official_test(known)}"
    ).rstrip()


def print_summary(summary: Summary, model: TrainedModel, folder: Path) -> None:
    """Print whether the model knows such films, counts, failures, where the answers are and what they rest on."""
    out = console(80)
    for sentence in summary.drift.sentences() if summary.drift else ():
        out.print(sentence)
    read = sum(summary.decisions.values())
    title = f"{read} of {summary.files} files read; operating point {model.card.operating_point:.4f}"
    rows = make_table(title, ("decision", "files", "share", "means"), right=("files", "share"))
    for name, meaning in meanings(model.card).items():
        count = summary.decisions[name]
        rows.add_row(name, str(count), percent(count / read) if read else "", meaning)
    for place, (code, count) in enumerate(summary.failures.most_common()):
        meaning = "likewise" if place else "could not be read; see the column message"
        rows.add_row(Text(code, style="red"), str(count), "", meaning)
    out.print(rows)
    for name, count in summary.flags.most_common():
        out.print(f"Flag {name}: {count} ({FLAGS[name]})")
    out.print(f"For example {word_probability(model.card)(0.8)} {word_promise(summary, model.card)}")
    out.print(f"Model {model.name}. {describe_evidence(model.card)}")
    out.print("A second opinion beside a radiologist's reading; no medical device.")
    print(f"Answers: {folder / TABLE}\nContact sheet: {folder / SHEET}")
    print_last_line(summary, folder)


def print_last_line(summary: Summary, folder: Path) -> None:
    """Print the line that programs read."""
    print(f"output={folder} files={summary.files} failed={sum(summary.failures.values())}", flush=True)
