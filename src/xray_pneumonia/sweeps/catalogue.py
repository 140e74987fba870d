"""Lists the studies of a database and how far they are."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import optuna
from optuna.storages import RDBStorage

from xray_pneumonia.sweeps.best_trial import word_best
from xray_pneumonia.sweeps.storage import open_storage, resolve
from xray_pneumonia.tracking.locations import sqlite_path


@dataclass(frozen=True)
class Entry:
    """One study."""

    name: str
    done: int
    pruned: int
    running: int
    failed: int
    n_trials: int
    best: str
    changed: datetime | None
    searched: tuple[str, ...]


def list_studies(url: str | None, *, home: Path) -> list[Entry]:
    """List the studies of a database, the youngest last; a database that is not there is not created.

    Args:
        url: of the database; null as for sweeps.
        home: where the default one lies.
    """
    url = resolve(url, home)
    path = sqlite_path(url)
    if path is not None and not path.exists():
        return []
    storage = open_storage(url)
    return [_entry(name, storage) for name in optuna.get_all_study_names(storage)]


def _entry(name: str, storage: RDBStorage) -> Entry:
    study = optuna.load_study(study_name=name, storage=storage)
    trials = study.get_trials(deepcopy=False)
    counts = Counter(trial.state.name for trial in trials)
    known = study.user_attrs.get("sweep", {})
    replaced = {trial.user_attrs.get("replaces") for trial in trials if trial.state.is_finished()}
    failed = [t for t in trials if t.state.name == "FAIL" and t.number not in replaced and "reason" in t.user_attrs]
    moments = [moment for t in trials for moment in (t.datetime_complete, t.datetime_start) if moment]
    return Entry(
        name=name,
        done=counts["COMPLETE"] + counts["PRUNED"],
        pruned=counts["PRUNED"],
        running=counts["RUNNING"],
        failed=len(failed),
        n_trials=study.user_attrs.get("n_trials", len(trials)),
        best=_best(study, list(known.get("objectives", ["value"]))),
        changed=max(moments, default=None),
        searched=tuple(known.get("space", {})),
    )


def _best(study: optuna.Study, objectives: list[str]) -> str:
    best = study.best_trials
    if not best:
        return "-"
    if len(objectives) > 1:
        return f"{len(best)} that none beats"
    words = word_best(study)
    return f"{objectives[0]} {best[0].values[0]:.4f}" + (f" ({words})" if words else "")
