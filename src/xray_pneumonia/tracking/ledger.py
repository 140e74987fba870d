"""Records every opening of a test split in the ledger, before the first prediction is made.

The ledger is an experiment of the store with one run for each opening, so it works with any store and shows in the
MLflow UI. It counts for every experiment of the store; deleted entries still count. Each set of images is listed once,
by eight characters an image, so that images are known again in any other set.
"""

import base64
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from xray_pneumonia.tracking.process import day_and_minute, user
from xray_pneumonia.tracking.store import Store, ensure_experiment
from xray_pneumonia.tracking.stored_runs import list_runs
from xray_pneumonia.whole_files import file_lock

EXPERIMENT = "ledger"
SEALED = frozenset({"test", "external"})  # validation may be used as often as one likes
BYTES, CHARACTERS = 6, 8  # of an image's SHA-256; as base64. Two images in 10^14 look alike
FILMS = "ledger.films."  # and a number
IN_A_TAG = 600  # images: MLflow's older stores keep 5,000 characters in a tag


@dataclass(frozen=True)
class Opening:
    """One opening: `started` in milliseconds since 1970; `shared` counts the images that are opened again."""

    started: int
    who: str
    split: str
    fingerprint: str
    contents: str
    experiment: str
    config_sha256: str
    runs: str
    films: str
    shared: int = 0

    @property
    def when(self) -> str:
        """The day and minute, in UTC."""
        return day_and_minute(self.started)


def record_opening(
    store: Store,
    *,
    split: str,
    fingerprint: str,
    contents: str,
    experiment: str,
    config_sha256: str,
    runs: list[str],
    films: Collection[str] = (),
    facts: Mapping[str, object] | None = None,
) -> list[Opening]:
    """Record that a split is about to be opened; returns all openings that share an image with it, this one last.

    Args:
        store: where runs are kept.
        split: `test` or `external`; `val` is not sealed and not written.
        fingerprint: of the records that are opened: names, images, labels and split.
        contents: fingerprint of the images alone, the same whatever their names.
        experiment: whose models are evaluated.
        config_sha256: of the models' configs.
        runs: ids of the models' runs.
        films: SHA-256 of each image, 64 hex digits.
        facts: what else to keep of the opening, by name.
    """
    short = {_short(film) for film in films}
    if split in SEALED:
        tags = {
            "ledger.split": split,
            "ledger.fingerprint": fingerprint,
            "ledger.contents": contents,
            "ledger.experiment": experiment,
            "ledger.config_sha256": config_sha256,
            "ledger.runs": ",".join(runs),
            "ledger.who": f"{user()}@{platform.node()}",
            **{f"ledger.{name}": str(fact) for name, fact in (facts or {}).items()},
        }
        with file_lock(store.home / ".ledger.lock"):
            if contents not in _listed(openings(store)):
                tags |= _film_tags(sorted(short))
            made = store.client.create_run(ensure_experiment(store.uri, EXPERIMENT, store.home), tags=tags)
            store.client.set_terminated(made.info.run_id, "FINISHED")
    return _sharing(openings(store), short, fingerprint, contents)


def _sharing(known: list[Opening], short: set[str], fingerprint: str, contents: str) -> list[Opening]:
    """Select the openings that share an image."""
    shared = {name: len(short & listed) for name, listed in _listed(known).items()}
    for place, one in enumerate(known):
        same = one.fingerprint == fingerprint or one.contents == contents
        known[place] = replace(one, shared=max(len(short), 1) if same else shared.get(one.contents, 0))
    return [one for one in known if one.shared]


def openings(store: Store, *, before: int | None = None) -> list[Opening]:
    """List what was opened, oldest first, deleted entries too."""
    home = store.client.get_experiment_by_name(EXPERIMENT)
    if home is None:
        return []
    runs = [run for run in list_runs(store, home.experiment_id, deleted=True) if "ledger.split" in run.data.tags]
    found = [_opening(run.info.start_time, run.data.tags) for run in runs]
    return [one for one in found if before is None or one.started < before]


def opened_before(store: Store, *, started: int) -> int:
    """Count the openings in the store that a run, started at this time, could have been chosen by."""
    return len(openings(store, before=started))


def _opening(started: int, tags: Mapping[str, str]) -> Opening:
    names = ("who", "split", "fingerprint", "contents", "experiment", "config_sha256", "runs")
    who, split, fingerprint, contents, experiment, config, runs = (tags.get(f"ledger.{name}", "") for name in names)
    parts = sorted((int(key.rpartition(".")[2]), value) for key, value in tags.items() if key.startswith(FILMS))
    films = "".join(value for _, value in parts)
    return Opening(started, who, split, fingerprint, contents, experiment, config, runs, films)


def _short(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)[:BYTES]).decode()


def _film_tags(films: list[str]) -> dict[str, str]:
    parts = [films[start : start + IN_A_TAG] for start in range(0, len(films), IN_A_TAG)]
    return {f"{FILMS}{place}": "".join(part) for place, part in enumerate(parts)}


def _listed(known: list[Opening]) -> dict[str, set[str]]:
    """Look up the images of each set that the ledger lists."""
    return {
        one.contents: {one.films[start : start + CHARACTERS] for start in range(0, len(one.films), CHARACTERS)}
        for one in known
        if one.films
    }
