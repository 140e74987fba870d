"""Records every opening of a test split in the ledger, before the first prediction is made.

The ledger is an experiment of the store with one run for each opening, so it works with any store and shows in the
MLflow UI. Deleted entries still count.
"""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime

from filelock import FileLock

from xray_pneumonia.tracking.process import user
from xray_pneumonia.tracking.store import Store, ensure_experiment

EXPERIMENT = "ledger"
SEALED = frozenset({"test", "external"})  # validation may be used as often as one likes
MOST = 5000  # entries read back


@dataclass(frozen=True)
class Opening:
    """One opening: `started` in milliseconds since 1970."""

    started: int
    who: str
    split: str
    fingerprint: str
    contents: str
    experiment: str
    config_sha256: str
    runs: str

    @property
    def when(self) -> str:
        """The day and minute, in UTC."""
        return datetime.fromtimestamp(self.started / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def record_opening(
    store: Store, *, split: str, fingerprint: str, contents: str, experiment: str, config_sha256: str, runs: list[str]
) -> list[Opening]:
    """Record that a split is about to be opened; returns all openings of the same images, this one last.

    Args:
        store: where runs are kept.
        split: `test` or `external`; `val` is not sealed and not written.
        fingerprint: of the records that are opened: names, images, labels and split.
        contents: fingerprint of the images alone, the same whatever their names.
        experiment: whose models are evaluated.
        config_sha256: of the models' configs.
        runs: ids of the models' runs.
    """
    if split in SEALED:
        tags = {
            "ledger.split": split,
            "ledger.fingerprint": fingerprint,
            "ledger.contents": contents,
            "ledger.experiment": experiment,
            "ledger.config_sha256": config_sha256,
            "ledger.runs": ",".join(runs),
            "ledger.who": f"{user()}@{platform.node()}",
        }
        with FileLock(store.home / ".ledger.lock"):
            made = store.client.create_run(ensure_experiment(store.uri, EXPERIMENT, store.home), tags=tags)
            store.client.set_terminated(made.info.run_id, "FINISHED")
    return [one for one in openings(store) if one.fingerprint == fingerprint or one.contents == contents]


def openings(store: Store, *, experiment: str | None = None, before: int | None = None) -> list[Opening]:
    """List what was opened, oldest first, deleted entries too.

    Args:
        store: where runs are kept.
        experiment: only for evaluations of models of this experiment.
        before: only earlier than this, in milliseconds since 1970.
    """
    from mlflow.entities import ViewType

    home = store.client.get_experiment_by_name(EXPERIMENT)
    if home is None:
        return []
    runs = store.client.search_runs(
        [home.experiment_id], run_view_type=ViewType.ALL, max_results=MOST, order_by=["attributes.start_time ASC"]
    )
    found = [_opening(run.info.start_time, run.data.tags) for run in runs if "ledger.split" in run.data.tags]
    return [one for one in found if experiment in {None, one.experiment} and (before is None or one.started < before)]


def opened_before(store: Store, *, experiment: str, started: int) -> int:
    """Count the openings for an experiment that a run, started at this time, could have been chosen by."""
    return len(openings(store, experiment=experiment, before=started))


def _opening(started: int, tags: dict[str, str]) -> Opening:
    names = ("who", "split", "fingerprint", "contents", "experiment", "config_sha256", "runs")
    return Opening(started, *(tags.get(f"ledger.{name}", "") for name in names))
