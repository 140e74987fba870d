"""Runs `xray compare`: tables the runs of an experiment or a sweep, repeats grouped, and tests two groups."""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import pandas as pd
from annotated_types import Len
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from xray_pneumonia.config import Node, anchor, build, check
from xray_pneumonia.errors import InputError, nearest
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.evaluation.comparison import Difference, compare
from xray_pneumonia.evaluation.metrics import EPOCH_METRICS, METRICS
from xray_pneumonia.evaluation.run_groups import Entry, Group, group, pool, tabulate
from xray_pneumonia.tracking import stored_runs
from xray_pneumonia.tracking.locations import ArtifactMissing
from xray_pneumonia.tracking.run_names import find_run_id
from xray_pneumonia.tracking.server import address, link, see_it
from xray_pneumonia.tracking.store import Store, open_existing
from xray_pneumonia.tracking.stored_runs import StoredRun
from xray_pneumonia.types import Count, Seed
from xray_pneumonia.workflows.choices import parameters_of

TESTED = ("auroc", "accuracy", "sensitivity", "specificity")
THRESHOLD = 0.5  # of the metrics that trainings log; operating points differ between runs
DRAWN = 8  # groups in the figure; more cannot be told apart
UNLIMITED = 10_000  # columns of a terminal on which every table fits
log = logging.getLogger(__name__)
Format = Literal["rich", "csv", "markdown"]
if TYPE_CHECKING:
    Compared = str
else:
    Compared = Literal[(*EPOCH_METRICS, *(f"shift/{name}" for name in METRICS))]


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """The top-level keys of compare.yaml."""

    home: str
    experiment_name: str | None
    sweep_name: str | None
    run_ids: list[str] | None
    pruned: bool
    metrics: Annotated[list[Compared], Len(1)]
    format: Format
    pair: Annotated[list[Count], Len(2, 2)] | None
    replicates: Count
    seed: Seed
    output: str | None
    tracking: Node


def main(cfg: DictConfig) -> None:
    """Find the runs, group them, print, test and draw."""
    anchor(cfg)
    check(cfg, CompareConfig)
    settings = build(cfg.tracking)
    if cfg.experiment_name:
        settings = replace(settings, experiment_name=cfg.experiment_name)
    store = open_existing(settings, home=Path(cfg.home))
    runs = _find(store, cfg)
    logged = {name: name if "/" in name else f"best/{name}" for name in cfg.metrics}
    first = METRICS[cfg.metrics[0].rpartition("/")[2]]
    entries = [Entry(run.run_id, run.name, parameters_of(run.params), run.metrics) for run in runs]
    groups = group(entries, best_by=logged[cfg.metrics[0]], maximize=first.direction == "max")
    table = tabulate(groups, logged)
    named = [", ".join(f"{one.name} ({one.run_id[:8]})" for one in each.entries) for each in groups]
    folder = Path(cfg.output or Path(cfg.home) / "comparison" / store.experiment_name).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    table.assign(names=named).to_csv(folder / "runs.csv")
    show(table, list(cfg.metrics), cfg.format)
    if cfg.format != "csv":
        print("\n".join(["", *(f"group {place}: {names}" for place, names in enumerate(named, start=1))]))
        kept = {run.params.get("trainer.keep", "best") for run in runs}
        chosen = "best" in kept or any(run.params.get("trainer.patience") != "None" for run in runs)
        print("\n".join(["", *basis([run.metrics for run in runs], cfg.metrics, kept=kept, chosen=chosen)]))
    pair, by_id = _pair(cfg.pair, groups), {run.run_id: run for run in runs}
    if pair:
        show_test(_test([groups[place - 1] for place in pair], by_id, cfg), pair, cfg.format)
    _draw(groups, by_id, folder / "learning_curves.png")
    if cfg.format == "rich":
        _print_links(store, runs, folder)


def _find(store: Store, cfg: DictConfig) -> list[StoredRun]:
    """Find the finished trainings that were asked for.

    Raises:
        InputError: there are none; the message says what there is instead.
    """
    runs = stored_runs.find(store, {"verb": "train"}, status="FINISHED")
    if cfg.sweep_name:
        names = {run.tags["sweep.name"] for run in runs if "sweep.name" in run.tags}
        parents = {run.tags.get(stored_runs.PARENT) for run in runs}
        if cfg.sweep_name not in names | parents:
            hint = nearest(cfg.sweep_name, names) or f"; there are {', '.join(sorted(names)) or 'none'}"
            raise InputError(f"sweep_name={cfg.sweep_name}: no such sweep in experiment {store.experiment_name}{hint}")
        runs = [run for run in runs if cfg.sweep_name in {run.tags.get("sweep.name"), run.tags.get(stored_runs.PARENT)}]
    if cfg.run_ids:
        known = {run.run_id: run for run in runs}
        asked = [find_run_id(store, text, key="run_ids") for text in cfg.run_ids]
        unknown = [run_id for run_id in asked if run_id not in known]
        if unknown:
            raise InputError(
                f"run_ids={unknown}: no finished training in experiment {store.experiment_name} has this id"
            )
        return [known[run_id] for run_id in asked]
    if not runs:
        raise InputError(f"experiment_name={store.experiment_name}: holds no finished training; train with xray train")
    return runs if cfg.pruned else _without_pruned(runs)


def _without_pruned(runs: list[StoredRun]) -> list[StoredRun]:
    """Leave out the trials that a sweep ended early: their best of few epochs is no fair figure."""
    kept = [run for run in runs if run.tags.get("sweep.state") != "PRUNED"]
    if not kept:
        raise InputError(f"pruned=false: all {len(runs)} trainings were ended early by their sweep; see pruned=true")
    if len(kept) < len(runs):
        log.info("%d trials that a sweep ended early are left out; pruned=true shows them", len(runs) - len(kept))
    return kept


def _pair(asked: Sequence[int] | None, groups: Sequence[Group]) -> tuple[int, int] | None:
    """Choose the two groups to test, counted from 1: those asked for, else all there are if these are two."""
    if asked is None:
        return (1, 2) if len(groups) == 2 else None
    if len(set(asked)) < 2 or max(asked) > len(groups):
        raise InputError(f"pair={list(asked)}: two different groups from 1 to {len(groups)} make a pair")
    return asked[0], asked[1]


def _test(pair: Sequence[Group], runs: dict[str, StoredRun], cfg: DictConfig) -> list[Difference]:
    """Test two groups on the predictions that their runs stored."""
    first, second = (_predictions(one, runs) for one in pair)
    shared = set(first["id"]) & set(second["id"])
    if not shared:
        raise InputError("pair: the two groups were validated on different images, so nothing can be paired")
    tables = [table[table["id"].isin(shared)].reset_index(drop=True) for table in (first, second)]
    differences = compare(*tables, thresholds=(THRESHOLD, THRESHOLD), replicates=cfg.replicates, seed=cfg.seed)
    return [one for one in differences if one.name in TESTED]


def _predictions(one: Group, runs: dict[str, StoredRun]) -> pd.DataFrame:
    tables = []
    with TemporaryDirectory() as folder:
        for entry in one.entries:
            target = Path(folder) / entry.run_id
            target.mkdir()
            try:
                tables.append(predictions.read(runs[entry.run_id].artifact("predictions/val.csv", target=target)))
            except ArtifactMissing as error:
                raise InputError(f"{error}; leave it out with run_ids=[...]") from error
    return pool(tables)


def _draw(groups: Sequence[Group], runs: dict[str, StoredRun], path: Path) -> None:
    from xray_pneumonia.evaluation.report.figures import OVERLAID, overlaid_curves, save  # matplotlib: most of a second

    histories = {
        f"group {place}": [{metric: runs[entry.run_id].history(metric) for metric in OVERLAID} for entry in one.entries]
        for place, one in enumerate(groups[:DRAWN], start=1)
    }
    save(overlaid_curves(histories), path)


def _print_links(store: Store, runs: Sequence[StoredRun], folder: Path) -> None:
    print(f"Learning curves and table: {folder}")
    ids = [run.run_id for run in runs]
    print(f"See it: {see_it(store, ids, last=False)}")
    if not address(store):
        print(f"  {link(store, ids)}")


def show(table: pd.DataFrame, metrics: list[str], kind: Format) -> None:
    """Print the table of `run_groups.tabulate`, with what differs below it where the terminal is too narrow."""
    if kind == "csv":
        print(table.to_csv(), end="")
        return
    shown = _rounded(table, metrics)
    if kind == "markdown":
        print(_markdown(shown.reset_index()))
        return
    console = Console(width=None if Console().is_terminal else 160, markup=False)
    counts = {"run": int(table["runs"].sum()), "config": len(table)}
    title = ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for noun, count in counts.items())
    whole = _rich(shown.reset_index(), title)
    if console.measure(whole, options=console.options.update(width=UNLIMITED)).maximum <= console.width:
        console.print(whole)
        return
    keys = [name for name in shown.columns if name not in {"runs", *metrics}]
    console.print(_rich(shown.drop(columns=keys).reset_index(), title))
    for place, row in shown.iterrows():
        values = " ".join(f"{key}={row[key]}" for key in keys if row[key] != "-")
        console.print(f"group {place}: {values}", highlight=False)


def show_test(differences: list[Difference], pair: tuple[int, int], kind: Format) -> None:
    """Print how two groups differ, with intervals and p-values."""
    heads = ["", f"group {pair[0]}", f"group {pair[1]}", "difference (95 %)", "p", "test"]
    rows = [
        [one.name, f"{one.first:.4f}", f"{one.second:.4f}", str(one.gap), f"{one.p_value:.3g}", one.test]
        for one in differences
    ]
    frame = pd.DataFrame(rows, columns=heads)
    if kind == "rich":
        console = Console(width=None if Console().is_terminal else 120, markup=False)
        console.print(_rich(frame, "Paired by image, resampled by patient"))
    else:
        print("\n" + (_markdown(frame) if kind == "markdown" else frame.to_csv(index=False).rstrip()))


def basis(
    runs: Sequence[Mapping[str, float]], metrics: Sequence[str], *, kept: Collection[str], chosen: bool
) -> list[str]:
    """Word what the metrics of runs rest on: how many images and patients, which epoch, which threshold.

    `kept` tells which epochs the trainings kept (`best`, `last` or both), `chosen` whether any of them chose an epoch,
    or where to stop, on validation.
    """
    sentences = []
    if any("/" not in name for name in metrics):
        sentences.append(
            f"{' or '.join(sorted(kept)).capitalize()} epoch, on {_span(runs, 'data/val_images')} validation images of "
            f"{_span(runs, 'data/val_patients')} patients at threshold {THRESHOLD:g}; "
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


def _rich(shown: pd.DataFrame, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in shown.columns:
        table.add_column(str(name).replace(".", ".\n"), overflow="fold")
    for row in shown.itertuples(index=False):
        table.add_row(*map(str, row))
    return table


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
