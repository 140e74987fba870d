"""Finds trained models by run id, alias, folder, exported file or shipped name, for all verbs that need one."""

import logging
import re
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from xray_pneumonia.config import build
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation import calibration
from xray_pneumonia.evaluation.assessment import FIXED, Decision, OutOfFold, decide, promising
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.inference.bundle import CARD
from xray_pneumonia.inference.ensemble import ENSEMBLE, require_alike
from xray_pneumonia.inference.loading import EngineName, load_bundle, load_model
from xray_pneumonia.inference.model import TrainedModel, ensemble_of
from xray_pneumonia.tracking.registry import NAMED, find_registered
from xray_pneumonia.tracking.run_names import NoSuchRun, read_named
from xray_pneumonia.tracking.store import Store, TrackingSettings, open_database
from xray_pneumonia.tracking.stored_runs import RUN_ID, StoredRun, read_run
from xray_pneumonia.workflows.own_code import changes_shown
from xray_pneumonia.workflows.stored_predictions import find_siblings, read_out_of_fold, validation_predictions
from xray_pneumonia.workflows.training_record import read_provenance

STORED = "stored"  # the operating point that the model carries
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to evaluate, and what is known of its training."""

    model: TrainedModel  # its `decision` is what was stored with it, or chosen on validation for this evaluation
    runs: list[StoredRun]  # that trained it, one for each member; of a model in a folder what its files tell
    validation: pd.DataFrame | None  # its raw predictions on validation; None for a model in a folder


def find_and_load(model: str, *, tracking: TrackingSettings, home: Path, engine: EngineName = "auto") -> TrainedModel:
    """Find a trained model, as `find_model` does, and load it.

    Raises:
        InputError: there is no such model, or it is damaged or altered.
    """
    found = find_model(model, tracking=tracking, home=home)
    place = folder_of(found)
    log.info("model %s: %s", model, place)
    with changes_shown(found) if isinstance(found, StoredRun) else nullcontext():
        return load_model(place, name=model, engine=engine)


def find_model(model: str, *, tracking: TrackingSettings, home: Path, key: str = "model") -> StoredRun | Path:
    """Find the run that trained a model, its folder, or its exported file.

    Args:
        model: a run id; NAME@ALIAS of the registry; the name of a model that is shipped with this package; a folder
            with a bundle or an ensemble; an exported `.onnx` file; or what else names a run for `run_id=`.
        tracking: where runs are; what is shipped or a file touches nothing of MLflow.
        home: of the store.
        key: of the command line that names the model, for messages.

    Raises:
        InputError: there is no such model.
    """
    if not model:
        raise InputError(f"{key}='': name a run, a folder or a shipped model, or leave the key out")
    if RUN_ID.match(model):
        return read_run(open_database(tracking, home=home), model)
    if NAMED.match(model) and not Path(model).exists():
        return find_registered(open_database(tracking, home=home), model)
    shipped = shipped_models()
    if model in shipped:
        return shipped[model]
    folder = Path(model).expanduser()
    exported = folder.suffix == ".onnx" and folder.is_file()
    if exported or (folder / CARD).is_file() or (folder / ENSEMBLE).is_file():
        return folder.resolve()
    if (store := _database(tracking, home)) is not None:
        with suppress(NoSuchRun):
            return read_named(store, model, key=key)
    where = "" if store else f"; there are no runs in home={home}, another home=DIR may hold it"
    raise InputError(f"{key}={model}: {_explain(model, folder, sorted(shipped))}{where}")


def find_named(cfg: DictConfig) -> StoredRun | Path:
    """Find what `run_id` or `model` of a command names, which takes one of them."""
    if (cfg.run_id is None) == (cfg.model is None):
        raise InputError(
            f"run_id={cfg.run_id} model={cfg.model}: name one of them: run_id=ID, model=NAME@ALIAS or model=FOLDER"
        )
    tracking, home = build(cfg.tracking), Path(cfg.home)
    if cfg.model is None:
        return read_named(open_database(tracking, home=home), cfg.run_id)
    return find_model(cfg.model, tracking=tracking, home=home)


def folder_of(found: StoredRun | Path) -> Path:
    """Locate or fetch the files of a model that was found."""
    return found.bundle() if isinstance(found, StoredRun) else found


def _database(tracking: TrackingSettings, home: Path) -> Store | None:
    with suppress(InputError):
        return open_database(tracking, home=home)
    return None


def shipped_models() -> dict[str, Path]:
    """List the models that are shipped with this package, and their folders."""
    home = Path(str(files("xray_pneumonia"))) / "weights"
    found = (*home.glob(f"*/{CARD}"), *home.glob(f"*/{ENSEMBLE}"))
    return {path.parent.name: path.parent for path in sorted(found)}


def _explain(model: str, folder: Path, shipped: list[str]) -> str:
    if folder.is_dir():
        return f"this folder holds neither {CARD} nor {ENSEMBLE}"
    known = f"those that came with this package are {', '.join(shipped)}" if shipped else "none came with this package"
    kind = "no such model" if re.match(r"^\w+$", model) else "no such file, folder or run"
    return f"{kind}; {known}; give a run id, NAME@ALIAS, a folder with a bundle or an exported .onnx file"


def find_evaluated(
    store: Store, cfg: DictConfig, settings: EvaluationSettings
) -> tuple[EvaluatedModel, EvaluatedModel | None]:
    """Find the model that `run_id` or `model` of `xray evaluate` names, and that of `compare_to`, if anything.

    Raises:
        InputError: there is no such model, or it is damaged or altered.
    """
    if (cfg.run_id is None) == (cfg.model is None):
        raise InputError("run_id, model: name one of them: run_id=ID, or model=NAME of one that `xray predict` reads")
    named = cfg.model if cfg.run_id is None else [cfg.run_id] if isinstance(cfg.run_id, str) else cfg.run_id
    evaluated = _find_evaluated(store, cfg, settings, named, key="model")
    other = cfg.compare_to
    return evaluated, None if other is None else _find_evaluated(store, cfg, settings, other, key="compare_to")


def _find_evaluated(
    store: Store, cfg: DictConfig, settings: EvaluationSettings, named: str | Sequence[str], *, key: str
) -> EvaluatedModel:
    """Find the model of a name, or the ensemble of several run ids."""
    if not isinstance(named, str):
        return load_runs(store, list(named), settings, operating_point=cfg.operating_point)
    found = find_model(named, tracking=build(cfg.tracking), home=Path(cfg.home), key=key)
    if isinstance(found, StoredRun):
        return load_runs(store, [found.run_id], settings, operating_point=cfg.operating_point)
    if cfg.operating_point != STORED:
        raise InputError(
            f"operating_point={cfg.operating_point}: it would be chosen on the predictions of a run, and {key}={named} "
            f"stands in a folder without them; leave operating_point={STORED}"
        )
    if found.is_file():
        raise InputError(f"{key}={named}: an exported graph draws no heat maps; name the folder of its bundle")
    model = load_model(found, name=named)
    model.require_net()
    return EvaluatedModel(model, [_as_run(store, part) for part in model.members or (model,)], None)


def _as_run(store: Store, model: TrainedModel) -> StoredRun:
    """Describe a bundle as the run that trained it, from the files in its folder."""
    if model.folder is None:
        raise TypeError(f"{model.name}: was not read from a folder")
    provenance = read_provenance(model.folder)
    code, versions = (provenance.environment.get(part) or {} for part in ("code", "versions"))
    tags = {
        "config_sha256": str(provenance.environment.get("config_sha256", provenance.config_sha256)),
        "records_fingerprint": model.card.records_fingerprint,
        "mlflow.source.git.commit": str(code.get("commit", "unknown")),
        "git.dirty": str(code.get("dirty", "unknown")),
        "version.torch": str(versions.get("torch", "unknown")),
    }
    folder = model.folder.resolve()
    return StoredRun(store, model.card.run_id, model.name, "FINISHED", 0, provenance.config, tags, folder=folder)


def load_runs(
    store: Store, run_ids: list[str], settings: EvaluationSettings, *, operating_point: str
) -> EvaluatedModel:
    """Load the model of a run, or the models of several as one ensemble.

    Args:
        store: where the runs are.
        run_ids: what names one training, or several that validate on the same images.
        settings: how to choose on validation, where nothing was chosen when the model was trained.
        operating_point: `stored`, or a policy by which it is chosen on validation anew.

    Raises:
        InputError: a run is missing, unfinished or altered, or the runs do not fit each other.
    """
    runs = [read_named(store, text) for text in run_ids]
    if len({run.run_id for run in runs}) < len(run_ids) or not run_ids:
        raise InputError(f"run_id={run_ids}: name each run once")
    tables = [validation_predictions(run) for run in runs]
    members = [_load_run(run, table, settings) for run, table in zip(runs, tables, strict=True)]
    model, validation = members[0], tables[0]
    if len(members) > 1:
        _require_fitting(members, tables)
        members = [_naming_prevalence(one, table) for one, table in zip(members, tables, strict=True)]
        rows = [one.calibration.evidence(table["logit"]) for one, table in zip(members, tables, strict=True)]
        validation = validation.assign(logit=np.mean(rows, axis=0))
        run_id = ",".join(run.run_id for run in runs)
        card = replace(model.card, net={}, weights_sha256="", run_id=run_id)
        card = replace(card, temperature=1.0, bias=0.0, prevalence=0.5)  # evidence stays as it is
        model = ensemble_of(members, card, name=" + ".join(run.name for run in runs))
    elsewhere = read_out_of_fold(settings.out_of_fold or [], lambda: store)
    if settings.out_of_fold is None and len(runs) == 1:
        elsewhere = find_siblings(runs[0])
    decision = _decide(model, validation, settings, operating_point=operating_point, out_of_fold=elsewhere)
    return EvaluatedModel(model.with_decision(decision), runs, validation)


def _load_run(run: StoredRun, validation: pd.DataFrame, settings: EvaluationSettings) -> TrainedModel:
    """Load a run's model, and calibrate it where it was stored without a calibration."""
    with changes_shown(run):
        model = load_bundle(run.bundle(), name=f"run_id={run.run_id}")
    if model.card.run_id != run.run_id:
        raise InputError(
            f"run_id={run.run_id}: its model is that of run {model.card.run_id}; the run was altered, train it again"
        )
    model = replace(model, name=run.name)
    if model.card.operating_point_policy != FIXED:
        return model
    log.info("run %s carries no calibration; it is fitted on the run's validation predictions", run.run_id)
    fitted = calibration.fit(validation["logit"], validation["label"], method=settings.calibration)
    return replace(model, card=replace(model.card, temperature=fitted.temperature, bias=fitted.bias))


def _naming_prevalence(model: TrainedModel, validation: pd.DataFrame) -> TrainedModel:
    """Turn the logits of an older model into evidence, which members of an ensemble have in common."""
    named = model.calibration.naming(float(validation["label"].mean()))
    return replace(model, card=replace(model.card, bias=named.bias, prevalence=named.prevalence))


def _require_fitting(members: list[TrainedModel], tables: list[pd.DataFrame]) -> None:
    first = members[0].card
    for card, table in zip((member.card for member in members[1:]), tables[1:], strict=True):
        if list(table["id"]) != list(tables[0]["id"]):
            raise InputError(
                f"run_id: {first.run_id} and {card.run_id} validate on different images, so one may have trained on "
                "what the other is judged by; use runs with the same data.split_seed, folds and data.root"
            )
        require_alike(card, first, origin="run_id", names=(card.run_id, first.run_id))


def _decide(
    model: TrainedModel,
    validation: pd.DataFrame,
    settings: EvaluationSettings,
    *,
    operating_point: str,
    out_of_fold: OutOfFold | None,
) -> Decision:
    """Take the decision that a model carries, or choose on validation what it does not."""
    if operating_point != STORED:
        settings = replace(settings, operating_point=operating_point)
    elif not model.members and model.card.operating_point_policy != FIXED:
        stored = model.decision
        known = stored.promise
        if model.card.band and (out_of_fold is None or known is None or known["folds"]):
            return stored
        if out_of_fold is not None:
            log.info("the margin here is fitted on all folds; `xray predict` goes on with that of the model's own")
        most = known["max_error"] if known else settings.max_error
        return promising(stored, validation, out_of_fold, max_error=most)
    return decide(validation, settings, fitted=model.calibration, out_of_fold=out_of_fold)
