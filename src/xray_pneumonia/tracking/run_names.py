"""Names runs, and finds them by name, alias, `last`, `best` or the first digits of their id."""

import re
import secrets
from contextlib import suppress
from dataclasses import replace

from xray_pneumonia.errors import InputError
from xray_pneumonia.masking import masked
from xray_pneumonia.tracking.ledger import EXPERIMENT
from xray_pneumonia.tracking.registry import NAMED
from xray_pneumonia.tracking.store import Store
from xray_pneumonia.tracking.store_errors import query
from xray_pneumonia.tracking.stored_runs import RUN_ID, StoredRun, get, quoted, read_run, search

DIGITS = re.compile(r"[0-9a-f]{8,31}\Z")
LAST, BEST = "last", "best"
VALUE = "best/auroc"  # the metric of which the run called `best` has most
MOST_COMPARED = 20  # trainings; the page of more is unreadable, and its address fills a terminal
TRAININGS = ["tags.verb = 'train'", "attributes.status = 'FINISHED'"]


class NoSuchRun(InputError):
    """No run goes by this name."""


def free_name(store: Store, name: str) -> str:
    """Return a name, with a suffix where a run of the experiment has it already and the store says so."""
    with suppress(InputError):
        if store.experiment_id and query(store.uri, lambda: search(store, [f"attributes.run_name = {quoted(name)}"])):
            return f"{name}-{secrets.token_hex(2)}"  # the module `random` is seeded: all would draw the same
    return name


def find_run_id(store: Store, text: str, *, key: str = "run_id") -> str:
    """Find the id of the run that a text names; the ids of 32 digits pass as they are.

    Args:
        store: whose experiment `last` and `best` are of; names are looked for there first, then everywhere.
        text: an id or its first eight digits, a name, an alias or NAME@ALIAS of the registry, `last` (the finished
            training that started last) or `best` (the one with the highest validation AUROC, none that was pruned).
        key: of the command line, for messages.

    Raises:
        InputError: there is no such run, or there are several.
    """
    if RUN_ID.match(text):
        return text
    experiments = {one.experiment_id: one.name for one in store.client.search_experiments()}
    own = [replace(store, experiment_id=i, experiment_name=n) for i, n in experiments.items()]
    own.sort(key=lambda one: one.experiment_name != store.experiment_name)
    found = _extreme(own[:1], text) if text in {LAST, BEST} else _named(own, text)
    if len(found) == 1:
        return found.popitem()[0]
    where = f"in {masked(store.uri)}"
    if not found:
        raise NoSuchRun(
            f"{key}={text}: there is no such run {where}; give a run id of 32 hex digits or the first eight, a name, "
            "an alias, last or best; `xray runs` lists them"
        )
    each = ", ".join(f"{run_id[:8]} ({what})" for run_id, what in found.items())
    raise InputError(f"{key}={text}: names {len(found)} runs {where}: {each}; give eight digits")


def read_named(store: Store, text: str, *, key: str = "run_id") -> StoredRun:
    """Read the run that a text names as for `find_run_id`, checked by `read_run`; raises what they do."""
    return read_run(store, find_run_id(store, text, key=key))


def _extreme(stores: list[Store], text: str) -> dict[str, str]:
    """Find the last or best finished training of an experiment."""
    runs = [run for store in stores for run in search(store, TRAININGS)]
    if text == BEST:
        runs = [run for run in runs if VALUE in run.metrics and run.state != "pruned"]
        runs.sort(key=lambda run: run.metrics[VALUE])
    return {run.run_id: run.when for run in runs[-1:]}


def _named(stores: list[Store], text: str) -> dict[str, str]:
    """Find the runs that a text may name, with what tells them apart."""
    conditions = [] if {"'", '"'} <= set(text) else [f"attributes.run_name = {quoted(text)}"]  # MLflow has no escapes
    if DIGITS.match(text):
        conditions.append(f"attributes.run_id LIKE '{text}%'")
    for condition in conditions:
        for store in stores:  # those of the experiment come before those of others
            if runs := search(store, [condition]):
                return {run.run_id: f"{run.name}, {run.when}" for run in runs}
    return _aliased(stores[0], text)


def _aliased(store: Store, text: str) -> dict[str, str]:
    """Find the runs of the registered models that carry an alias."""
    named = NAMED.match(text)
    name, alias = (named["name"], named["alias"]) if named else (None, text)
    models = [one for one in store.client.search_registered_models() if alias in one.aliases]
    versions = [store.client.get_model_version_by_alias(one.name, alias) for one in models if name in {None, one.name}]
    return {str(version.run_id): f"{version.name}@{alias}" for version in versions}


def last_touched(store: Store) -> list[StoredRun]:
    """Find the run that was started or ended last in any experiment but the ledger.

    Of a sweep that are its trainings, or its parent run, which tables and draws them, where they are more than twenty.
    """
    client = store.client
    ids = [one.experiment_id for one in client.search_experiments() if one.name != EXPERIMENT]
    found = [
        run
        for column in ("start_time", "end_time")
        for run in client.search_runs(ids, order_by=[f"attributes.{column} DESC"], max_results=1)
    ]
    if not found:
        return []
    last = max(found, key=lambda run: max(run.info.start_time, run.info.end_time or 0))
    run = get(store, last.info.run_id)
    if run.tags.get("verb") not in {"sweep", "trial", "train"} or "sweep.name" not in run.tags:
        return [run]
    name = quoted(run.tags["sweep.name"])
    shown = search(run.store, [f"tags.sweep.name = {name}", "tags.verb = 'train'"])
    if len(shown) > MOST_COMPARED:
        shown = search(run.store, [f"tags.sweep.name = {name}", "tags.verb = 'sweep'"])[-1:]
    return shown or [run]
