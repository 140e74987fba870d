"""Runs `xray compare`: tables the runs of an experiment or a sweep, repeats grouped, and tests two groups."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Len
from omegaconf import DictConfig
from scipy.special import expit

from xray_pneumonia.config import Node, check
from xray_pneumonia.data.files import shown
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.evaluation.group_comparison import Repeat, compare_groups
from xray_pneumonia.evaluation.metrics import EPOCH_METRICS, METRICS
from xray_pneumonia.evaluation.run_groups import (
    RECORDS,
    Entry,
    Group,
    drop_reruns,
    group,
    questions,
    tabulate,
    tell_images_apart,
)
from xray_pneumonia.evaluation.selection_bias import correct_for_choice
from xray_pneumonia.terminal import console
from xray_pneumonia.tracking.locations import ArtifactMissing
from xray_pneumonia.tracking.run_names import MOST_COMPARED
from xray_pneumonia.tracking.server import address, link, see_it
from xray_pneumonia.tracking.store import Store
from xray_pneumonia.tracking.stored_runs import StoredRun
from xray_pneumonia.types import Count, Seed, Text
from xray_pneumonia.whole_files import write_whole
from xray_pneumonia.workflows.choices import parameters_of
from xray_pneumonia.workflows.comparison_tables import (
    THRESHOLD,
    UNLIMITED,
    Format,
    basis,
    count_images,
    show,
    show_test,
)
from xray_pneumonia.workflows.find_runs import find_trainings, open_experiment, output_folder

TESTED = ("auroc", "accuracy", "sensitivity", "specificity")
DECIDED = ("accuracy", "balanced_accuracy", "sensitivity", "specificity")  # by a threshold
OPERATING = "operating/threshold"  # of calibrated probabilities; older runs have none and are compared at 0.5
DRAWN = 8  # groups in the figure; more cannot be told apart
log = logging.getLogger(__name__)
if TYPE_CHECKING:
    Compared = str
else:
    Compared = Literal[(*EPOCH_METRICS, *(f"shift/{name}" for name in METRICS))]


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """The top-level keys of compare.yaml."""

    home: Text
    experiment_name: Text | None
    sweep_name: Text | None
    run_ids: list[Text] | None
    pruned: bool
    metrics: Annotated[list[Compared], Len(1)]
    format: Format
    pair: Annotated[list[Count], Len(2, 2)] | None
    replicates: Count
    seed: Seed
    output: Text | None
    tracking: Node


def main(cfg: DictConfig) -> None:
    """Find the runs, group them, print, test and draw."""
    check(cfg, CompareConfig)
    store = open_experiment(cfg)
    runs = find_trainings(store, sweep_name=cfg.sweep_name, run_ids=cfg.run_ids, pruned=cfg.pruned)
    at_point = all(OPERATING in run.metrics for run in runs)
    logged = {name: _logged(name, at_point) for name in cfg.metrics}
    first = METRICS[cfg.metrics[0].rpartition("/")[2]]
    entries = _entries(runs)
    runs = [run for run in runs if run.run_id in {entry.run_id for entry in entries}]
    groups = group(entries, best_by=logged[cfg.metrics[0]], maximize=first.direction == "max")
    table = tabulate(groups, logged)
    counted = count_images(table, groups, cfg.metrics)
    named = [", ".join(f"{one.name} ({one.run_id[:8]})" for one in each.entries) for each in groups]
    folder = output_folder(cfg, "comparison", store)
    write_whole(folder / "runs.csv", [counted.assign(names=named).to_csv().encode()])
    show(counted if cfg.format == "csv" else table, list(cfg.metrics), cfg.format)
    by_id = {run.run_id: run for run in runs}
    sentences = [*(f"group {place}: {names}" for place, names in enumerate(named, start=1)), ""]
    sentences += _basis(runs, cfg, at_point=at_point)
    asked = questions(entries)
    if len(groups) > 1 and len(asked) == 1:
        sentences.append(_best(groups, by_id, cfg, at_point=at_point))
    if len(asked) > 1:
        log.warning("these runs answer different questions, so no figures compare: %s", "; ".join(asked))
    if cfg.format != "csv":
        console(UNLIMITED).print("", *sentences, sep="\n")
    pair = _pair(cfg.pair, groups) if cfg.pair or len(asked) == 1 else None
    if pair:
        _test([groups[place - 1] for place in pair], by_id, pair, cfg, at_point=at_point)
    _draw(groups, by_id, folder / "learning_curves.png")
    if cfg.format == "rich":
        _print_links(store, [entry.run_id for one in groups for entry in one.entries], folder)


def _entries(runs: Sequence[StoredRun]) -> list[Entry]:
    """List what is compared: repeats differ in seed or fold, and saw the same images."""
    fingerprints = [run.tags.get("records_fingerprint", "") for run in runs]
    found = [
        Entry(run.run_id, run.name, parameters_of(run.params), run.metrics, records)
        for run, records in zip(runs, fingerprints, strict=True)
    ]
    kept, reruns = drop_reruns(tell_images_apart(found))
    if reruns:
        names = shown([f"{one.name} ({one.run_id[:8]})" for one in reruns])
        log.warning("the last run of the same config, seed and fold counts; left out, being no repeats: %s", names)
    if any(RECORDS in one.params for one in kept):
        log.warning("runs of the same data keys saw different images (column %s): figures do not compare", RECORDS)
    return kept


def _logged(name: str, at_point: bool) -> str:
    if "/" in name:
        return name
    return f"operating/{name}" if at_point and name in DECIDED else f"best/{name}"


def _basis(runs: Sequence[StoredRun], cfg: DictConfig, *, at_point: bool) -> list[str]:
    kept = {run.params.get("trainer.keep", "best") for run in runs}
    chosen = "best" in kept or any(run.params.get("trainer.patience") != "None" for run in runs)
    return basis([run.metrics for run in runs], cfg.metrics, kept=kept, chosen=chosen, at_point=at_point)


def _pair(asked: Sequence[int] | None, groups: Sequence[Group]) -> tuple[int, int] | None:
    """Choose the two groups to test, counted from 1: those asked for, else all there are if these are two."""
    if asked is None:
        return (1, 2) if len(groups) == 2 else None
    if len(set(asked)) < 2 or max(asked) > len(groups):
        raise InputError(f"pair={list(asked)}: two different groups from 1 to {len(groups)} make a pair")
    return asked[0], asked[1]


def _test(
    pair: Sequence[Group], runs: Mapping[str, StoredRun], places: tuple[int, int], cfg: DictConfig, *, at_point: bool
) -> None:
    """Test two groups on the predictions that their runs stored, and print what was found."""
    if len(asked := questions([entry for one in pair for entry in one.entries])) > 1:
        raise InputError(f"pair: the two groups answer different questions, so nothing is tested: {'; '.join(asked)}")
    first, second = (_repeats(one, runs, at_point=at_point) for one in pair)
    found = compare_groups(first, second, names=TESTED, replicates=cfg.replicates, seed=cfg.seed)
    if found.left_out:
        log.warning(
            "the groups were validated on different images: %d are shared, %d are left out of the test",
            found.images,
            found.left_out,
        )
    show_test(found, places, cfg.format)


def _repeats(one: Group, runs: Mapping[str, StoredRun], *, at_point: bool) -> list[Repeat]:
    """Read the predictions of a group's runs, each with its own operating point or, where some lack it, 0.5."""
    found = []
    with TemporaryDirectory() as folder:
        for entry in one.entries:
            target = Path(folder) / entry.run_id
            target.mkdir()
            try:
                table = predictions.read(runs[entry.run_id].artifact("predictions/val.csv", target=target))
            except ArtifactMissing as error:
                raise InputError(f"{error}; leave it out with run_ids=[...]") from error
            if not at_point:
                table["probability"] = expit(table["logit"])
            split = (entry.params.get("data.split_seed", ""), entry.params.get("data.fold", ""))
            trained_on = entry.metrics.get("data/train_images", math.nan)
            found.append(Repeat(table, entry.metrics[OPERATING] if at_point else THRESHOLD, split, trained_on))
    return found


def _best(groups: Sequence[Group], runs: Mapping[str, StoredRun], cfg: DictConfig, *, at_point: bool) -> str:
    """Word how the best config's figure flatters for having been chosen, corrected where predictions allow it."""
    metric = cfg.metrics[0]
    flattered = f"{metric}: best of {len(groups)} configs, flattered by the choice"
    if "/" in metric:
        return f"{flattered}."
    try:
        configs = [_repeats(one, runs, at_point=at_point) for one in groups]
    except InputError as error:
        return f"{flattered} (not corrected: {error})."
    return f"{metric}: {correct_for_choice(configs, name=metric, seed=cfg.seed)}."


def _draw(groups: Sequence[Group], runs: dict[str, StoredRun], path: Path) -> None:
    from xray_pneumonia.evaluation.report.figures import OVERLAID, overlaid_curves, save  # matplotlib: most of a second

    histories = {
        f"group {place}": [{metric: runs[entry.run_id].history(metric) for metric in OVERLAID} for entry in one.entries]
        for place, one in enumerate(groups[:DRAWN], start=1)
    }
    save(overlaid_curves(histories), path)


def _print_links(store: Store, ids: Sequence[str], folder: Path) -> None:
    """Print where MLflow compares the runs; of more than `MOST_COMPARED`, those at the top of the table."""
    print(f"Learning curves and table: {folder}")
    shown = ids[:MOST_COMPARED]
    top = f" (the top {len(shown)} of {len(ids)} runs)" if len(shown) < len(ids) else ""
    print(f"See it{top}: {see_it(store, shown, last=False)}")
    if not address(store):
        print(f"  {link(store, shown)}")
