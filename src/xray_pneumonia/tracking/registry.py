"""The registry: names and aliases for the models of runs."""

import re
from dataclasses import dataclass

from xray_pneumonia.errors import InputError
from xray_pneumonia.tracking.environment import tracking_uri
from xray_pneumonia.tracking.store import Store, masked
from xray_pneumonia.tracking.stored_runs import StoredRun, read_run

NAMED = re.compile(r"^(?P<name>[^@/:\\]+)@(?P<alias>[\w-]+)$")


@dataclass(frozen=True)
class Registered:
    """A version of a registered model."""

    name: str
    alias: str
    version: int


def register(run: StoredRun, *, name: str, alias: str) -> Registered:
    """Register a run's model and give it an alias, which moves there from wherever it was.

    A run registered twice under a name stays one version.

    Raises:
        InputError: the name or alias is none, or the run holds no model.
    """
    from mlflow.exceptions import MlflowException

    if not NAMED.match(f"{name}@{alias}"):
        raise InputError(f"name={name!r} alias={alias!r}: a name has no / : @; an alias has letters, digits, - and _")
    if "model_id" not in run.tags:
        raise InputError(f"run {run.run_id}: holds no model; train it to its end first")
    client = run.store.client
    try:
        known = client.search_model_versions(f"run_id = '{run.run_id}'")
        version = next((one for one in known if one.name == name), None)
        if version is None:
            if not client.search_registered_models(f"name = '{name.replace(chr(39), chr(39) * 2)}'"):
                client.create_registered_model(name)
            source = f"models:/{run.tags['model_id']}"
            with tracking_uri(run.store.uri):  # MLflow looks the source up in whatever store is set
                version = client.create_model_version(name, source, run_id=run.run_id, model_id=run.tags["model_id"])
        client.set_registered_model_alias(name, alias, version.version)
    except MlflowException as error:
        raise InputError(f"{name}@{alias}: cannot be registered: {' '.join(str(error).split())}") from error
    return Registered(name, alias, int(version.version))


def find_registered(store: Store, reference: str) -> StoredRun:
    """Read the run of `NAME@ALIAS`.

    Raises:
        InputError: there is no such name or alias, or its run cannot be relied on.
    """
    from mlflow.exceptions import MlflowException

    named = NAMED.match(reference)
    if named is None:
        raise InputError(f"model={reference!r}: write NAME@ALIAS")
    try:
        version = store.client.get_model_version_by_alias(named["name"], named["alias"])
    except MlflowException as error:
        known = [f"{one.name}@{alias}" for one in store.client.search_registered_models() for alias in one.aliases]
        there = f"there are {', '.join(known)}" if known else "none is registered; `xray register run_id=ID` does"
        raise InputError(f"model={reference}: no such model in {masked(store.uri)}; {there}") from error
    run = read_run(store, str(version.run_id))
    if version.source != f"models:/{run.tags.get('model_id')}":
        raise InputError(f"model={reference}: its files ({version.source}) are not those of its run {run.run_id}")
    return run
