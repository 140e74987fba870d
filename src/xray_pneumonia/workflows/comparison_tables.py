"""Prints what `xray compare` found: the table of groups, what it rests on, and the test of two groups."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import pandas as pd
from rich.table import Table

from xray_pneumonia.evaluation.comparison import Difference
from xray_pneumonia.evaluation.group_comparison import GroupComparison
from xray_pneumonia.evaluation.intervals import FEWEST
from xray_pneumonia.evaluation.run_groups import Group
from xray_pneumonia.terminal import console, make_table

THRESHOLD = 0.5  # of runs that recorded no operating point
UNLIMITED = 10_000  # columns of a terminal on which every table fits
Format = Literal["rich", "csv", "markdown"]


def show(table: pd.DataFrame, metrics: list[str], kind: Format) -> None:
    """Print the table of `run_groups.tabulate`, with what differs below it where the terminal is too narrow."""
    if kind == "csv":
        print(table.to_csv(), end="")
        return
    shown = _rounded(table, metrics)
    if kind == "markdown":
        print(_markdown(shown.reset_index()))
        return
    out = console(160)
    counts = {"run": int(table["runs"].sum()), "config": len(table)}
    title = ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for noun, count in counts.items())
    whole = _rich(shown.reset_index(), title)
    if out.measure(whole, options=out.options.update(width=UNLIMITED)).maximum <= out.width:
        out.print(whole)
        return
    keys = [name for name in shown.columns if name not in {"runs", *metrics}]
    out.print(_rich(shown.drop(columns=keys).reset_index(), title))
    for place, row in shown.iterrows():
        values = " ".join(f"{key}={row[key]}" for key in keys if row[key] != "-")
        out.print(f"group {place}: {values}")


def count_images(table: pd.DataFrame, groups: Sequence[Group], metrics: Sequence[str]) -> pd.DataFrame:
    """Add columns with the images and patients that the figures of each group rest on."""
    counted = table.copy()
    for split in sorted({"shift" if "/" in name else "val" for name in metrics}):
        for what in ("images", "patients"):
            spans = [span([entry.metrics for entry in one.entries], f"data/{split}_{what}") for one in groups]
            counted[f"{split} {what}"] = spans
    return counted


def show_test(found: GroupComparison, pair: tuple[int, int], kind: Format) -> None:
    """Print how two groups differ, with intervals and p-values, what these are about, and what they rest on."""
    heads = ["", f"group {pair[0]}", f"group {pair[1]}", "difference (95 %)", "p", "p, Holm", "images", "patients"]
    frame = pd.DataFrame([_row(one) for one in found.differences], columns=[*heads, "differ", "test"])
    tested = sum(not math.isnan(one.p_value) for one in found.differences)
    title = (
        f"{found.images} shared images of {found.patients} patients, paired by image; about {found.about}; "
        f"{tested} metrics tested; differ: patients answered differently"
    )
    if kind == "csv":
        print("\n" + frame.replace("-", "").assign(about=found.about).to_csv(index=False).rstrip())
    elif kind == "markdown":
        print(f"\n{title}\n\n{_markdown(frame)}")
    else:
        console(140).print(_rich(frame, title))


def _row(one: Difference) -> list[str]:
    """Word a difference; nothing is said of a single patient."""
    enough = one.gap.patients >= FEWEST
    values = [f"{one.first:.4f}", f"{one.second:.4f}", str(one.gap)] if enough else ["-"] * 3
    p_values = ["-" if math.isnan(p) else f"{p:.3g}" for p in (one.p_value, one.p_holm)]
    counts = [str(count) for count in (one.gap.images, one.gap.patients, one.differing)]
    return [one.name, *values, *p_values, *counts, one.test]


def basis(
    runs: Sequence[Mapping[str, float]],
    metrics: Sequence[str],
    *,
    kept: Collection[str],
    chosen: bool,
    at_point: bool = False,
) -> list[str]:
    """Word what the metrics of runs rest on: how many images and patients, which epoch, which threshold.

    `kept` tells which epochs the trainings kept (`best`, `last` or both), `chosen` whether any of them chose an epoch,
    or where to stop, on validation, `at_point` whether each run is judged at its own operating point.
    """
    sentences = []
    if any("/" not in name for name in metrics):
        sentences.append(
            f"{' or '.join(sorted(kept)).capitalize()} epoch, on {span(runs, 'data/val_images')} validation images of "
            f"{span(runs, 'data/val_patients')} patients at "
            + ("each run's own operating point, chosen on them; " if at_point else f"threshold {THRESHOLD:g}; ")
            + ("the epoch was chosen on them, so this flatters." if chosen else "none was chosen on them.")
        )
    if any("/" in name for name in metrics):
        sentences.append(
            f"shift/...: on {span(runs, 'data/shift_images')} images of {span(runs, 'data/shift_patients')} patients."
        )
    return sentences


def span(runs: Sequence[Mapping[str, float]], name: str) -> str:
    """Write the least and the most of what runs count under a name."""
    known = sorted({int(run[name]) for run in runs if name in run})
    return " to ".join(map(str, dict.fromkeys([known[0], known[-1]]))) if known else "an unknown number of"


def _rich(shown: pd.DataFrame, title: str) -> Table:
    rows = make_table(title, [str(name).replace(".", ".\n") for name in shown.columns])
    for row in shown.itertuples(index=False):
        rows.add_row(*map(str, row))
    return rows


def _rounded(table: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """Write each metric as `mean ± sd`, and the long numbers of a config with four digits."""
    shown = table.drop(columns=[f"{name} sd" for name in metrics]).astype(object).map(_brief)
    for name in metrics:
        pairs = zip(table[name], table[f"{name} sd"], strict=True)
        shown[name] = [f"{mean:.4f}" + ("" if math.isnan(sd) else f" ± {sd:.4f}") for mean, sd in pairs]
    return shown


def _brief(value: object) -> object:
    try:
        return f"{float(value):.4g}" if isinstance(value, str) and len(value) > len("0.00001") else value
    except ValueError:
        return value


def _markdown(shown: pd.DataFrame) -> str:
    lines = [list(map(str, shown.columns)), ["---"] * len(shown.columns)]
    lines += [[str(cell).replace("|", "\\|") for cell in row] for row in shown.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
