"""Logs bundles as MLflow models, and registers them under names and aliases."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from xray_pneumonia.errors import InputError
from xray_pneumonia.masking import masked
from xray_pneumonia.tracking.process import user
from xray_pneumonia.tracking.store import Store
from xray_pneumonia.tracking.stored_runs import StoredRun, quoted, read_run
from xray_pneumonia.whole_files import file_sha256

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

FORBIDDEN = re.compile("[/:.%\"']")  # in the name of a model
ON_MODEL = ("model", "augmentation", "optimizer", "loss", "scheduler", "optimizer.lr", "seed")  # parameters
ON_VERSION = ("mlflow.source.git.commit", "config_sha256", "records_fingerprint", "chosen_after_opening")  # tags
RESULTS = ("best/auroc", "operating/threshold", "operating/sensitivity", "operating/specificity")
KEPT = "Classifiers of chest X-rays (NORMAL, PNEUMONIA), registered by `xray register`; an alias names the one in use."
NAMED = re.compile(r"^(?P<name>[^@/:\\]+)@(?P<alias>[\w-]+)$")


class Unverified(Exception):
    """A file in the store is not what was sent, or cannot be read back."""


@contextmanager
def tracking_uri(uri: str) -> Iterator[None]:
    """Point MLflow's fluent functions, which take no client, to a store for the length of the block.

    MLflow writes the URI into the environment too, where the next run of this process would find it.
    """
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri("")
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def log_model(store: Store, run_id: str, folder: Path, *, epoch: int, loader_module: str) -> None:
    """Log a bundle as an MLflow model with a signature, and read it back (else Unverified); nothing in it is pickled.

    MLflow copies the metrics of the `epoch` whose weights it holds to the model, and opens the bundle by the
    `_load_pyfunc` of `loader_module`.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    run = store.client.get_run(run_id)
    name = FORBIDDEN.sub("-", f"{run.info.run_name}-epoch-{epoch}")
    params = {key: run.data.params[key] for key in ON_MODEL if key in run.data.params}
    model = store.client.create_logged_model(
        run.info.experiment_id, name=name, source_run_id=run_id, params=params, model_type="classifier"
    )
    with tracking_uri(store.uri):
        Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            model_id=model.model_id,
            step=epoch,
            loader_module=loader_module,
            data_path=str(folder),
            signature=_signature(),
            pip_requirements=["xray-pneumonia"],
        )
    store.client.log_batch(run_id, metrics=_linked_metrics(run, model.model_id))
    store.client.set_tag(run_id, "model_id", model.model_id)
    if not _holds(store, model.model_id, folder):
        raise Unverified("the model in the store is not what was sent")


def _linked_metrics(run: "Run", model_id: str) -> list["Metric"]:
    """Say of the metrics of the kept epoch which model and data they are of; they stay the same metrics of the run."""
    from mlflow.entities import Metric

    inputs = run.inputs.dataset_inputs if run.inputs else []
    data = (inputs[0].dataset.name, inputs[0].dataset.digest) if inputs else (None, None)
    # `Run.data` holds numbers alone; what is logged anew must have the time that it was logged at.
    logged = [one for one in run.data._metric_objs if one.key.startswith(("best/", "operating/"))]
    return [Metric(one.key, one.value, one.timestamp, one.step, model_id, *data) for one in logged]


def has_model(store: Store, run_id: str, folder: Path) -> bool:
    """Tell whether the store holds a run's bundle; models that a killed process left half done are deleted."""
    experiment_id = store.client.get_run(run_id).info.experiment_id
    for model in store.client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"):
        if str(model.status) == "READY" and _holds(store, model.model_id, folder):
            store.client.set_tag(run_id, "model_id", model.model_id)
            return True
        store.client.delete_logged_model(model.model_id)
    return False


def _holds(store: Store, model_id: str, folder: Path) -> bool:
    from mlflow.artifacts import download_artifacts

    place = store.client.get_logged_model(model_id).artifact_location
    with TemporaryDirectory() as scratch:
        fetched = Path(download_artifacts(artifact_uri=place, dst_path=scratch, tracking_uri=store.uri))
        return _digests(folder) <= _digests(fetched)


def _digests(folder: Path) -> set[str]:
    return {file_sha256(path) for path in folder.rglob("*") if path.is_file()}


def _signature() -> Any:
    """State what the model takes and returns: the files' bytes or their pixels, one row of answers for each."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    # The bytes of a file (base64 in JSON), or S x S gray values. With a stricter type one wrong row fails all others.
    inputs = Schema([ColSpec(AnyType(), name, required=False) for name in ("image", "pixels")])
    texts = [ColSpec(DataType.string, name) for name in ("answer", "abstention")]
    score = ColSpec(DataType.double, "gate_score")  # above 1 for films of another kind than those it learned from
    numbers = [ColSpec(DataType.double, "probability"), ColSpec(DataType.string, "label")]
    points = [ColSpec(DataType.double, name) for name in ("operating_point", "prevalence")]
    params = ParamSchema([ParamSpec("prevalence", DataType.double, 0.0)])  # 0: the model's own
    return ModelSignature(inputs=inputs, outputs=Schema([*numbers, *points, *texts, score]), params=params)


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
    facts = {key: run.tags[key] for key in ON_VERSION if key in run.tags}
    facts |= {"author": user(), "run_name": run.name}
    facts |= {key: f"{run.metrics[key]:.6f}" for key in RESULTS if key in run.metrics}
    try:
        known = client.search_model_versions(f"run_id = '{run.run_id}'")
        version = next((one for one in known if one.name == name), None)
        if version is None:
            if not client.search_registered_models(f"name = {quoted(name)}"):
                client.create_registered_model(name, description=KEPT)
            source = f"models:/{run.tags['model_id']}"
            with tracking_uri(run.store.uri):  # MLflow looks the source up in whatever store is set
                version = client.create_model_version(
                    name,
                    source,
                    run_id=run.run_id,
                    model_id=run.tags["model_id"],
                    tags=facts,
                    description=run.tags.get("mlflow.note.content"),
                )
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
