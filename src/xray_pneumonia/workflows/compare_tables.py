"""Tables of a comparison, as a terminal, a program or a document wants them."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import pandas as pd
from rich.console import Console
from rich.table import Table

from xray_pneumonia.evaluation.comparison import Difference

Format = Literal["rich", "csv", "markdown"]
ENDLESS = 10_000  # columns of a terminal that nothing is too wide for


def show(table: pd.DataFrame, metrics: list[str], kind: Format) -> None:
    """Print the groups: what differs in columns, or below the table where the terminal is too narrow for that.

    Args:
        table: as `evaluation.runs.tabulate` makes it.
        metrics: the headings of its figures.
        kind: csv has all digits.
    """
    if kind == "csv":
        print(table.to_csv(), end="")
        return
    shown = _rounded(table, metrics)
    if kind == "markdown":
        print(_markdown(shown.reset_index()))
        return
    console = Console(width=None if Console().is_terminal else 160, markup=False)
    title = f"{_counted(int(table['runs'].sum()), 'run')}, {_counted(len(table), 'config')}"
    whole = _rich(shown.reset_index(), title)
    if console.measure(whole, options=console.options.update(width=ENDLESS)).maximum <= console.width:
        console.print(whole)
        return
    keys = [name for name in shown.columns if name not in {"runs", *metrics}]
    console.print(_rich(shown.drop(columns=keys).reset_index(), title))
    for place, row in shown.iterrows():
        said = " ".join(f"{key}={row[key]}" for key in keys if row[key] != "-")
        console.print(f"group {place}: {said}", highlight=False)


def basis(
    runs: Sequence[Mapping[str, float]],
    metrics: Sequence[str],
    *,
    kept: Collection[str],
    chosen: bool,
    threshold: float,
) -> list[str]:
    """Say what the figures rest on: how many images and patients, which epoch, which threshold.

    Args:
        runs: the metrics of each, by name.
        metrics: the headings of the figures; those of the shifted split start with `shift/`.
        kept: which epochs their trainings kept: best, last, or some this and some that.
        chosen: whether an epoch, or where to stop, was chosen on validation in any of them.
        threshold: of the figures on validation.
    """
    sentences = []
    if any("/" not in name for name in metrics):
        sentences.append(
            f"{' or '.join(sorted(kept)).capitalize()} epoch, on {_span(runs, 'data/val_images')} validation images of "
            f"{_span(runs, 'data/val_patients')} patients at threshold {threshold:g}; "
            + ("the epoch was chosen on them, so this flatters." if chosen else "none was chosen on them.")
        )
    if any("/" in name for name in metrics):
        sentences.append(
            f"shift/...: on {_span(runs, 'data/shift_images')} images of {_span(runs, 'data/shift_patients')} patients."
        )
    return sentences


def _span(runs: Sequence[Mapping[str, float]], name: str) -> str:
    known = sorted({int(run[name]) for run in runs if name in run})
    return " to ".join(map(str, dict.fromkeys([known[0], known[-1]]))) if known else "an unknown number of"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _rich(shown: pd.DataFrame, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in shown.columns:
        table.add_column(str(name).replace(".", ".\n"), overflow="fold")
    for row in shown.itertuples(index=False):
        table.add_row(*map(str, row))
    return table


def _rounded(table: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """Write each figure as `mean ± sd`, and the drawn numbers of a config with four digits."""
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


def show_test(differences: list[Difference], pair: tuple[int, int], kind: Format) -> None:
    """Print how two groups differ, with intervals and p-values."""
    heads = ["", f"group {pair[0]}", f"group {pair[1]}", "difference (95 %)", "p", "test"]
    rows = [
        [one.name, f"{one.first:.4f}", f"{one.second:.4f}", str(one.gap), f"{one.p_value:.3g}", one.test]
        for one in differences
    ]
    if kind != "rich":
        frame = pd.DataFrame(rows, columns=heads)
        print("\n" + (_markdown(frame) if kind == "markdown" else frame.to_csv(index=False).rstrip()))
        return
    table = Table(title="Paired by image, resampled by patient", title_justify="left")
    for head in heads:
        table.add_column(head)
    for row in rows:
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 120, markup=False).print(table)
