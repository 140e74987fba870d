"""Who is judged, and beside whom: models by run or by name, and what must hold for them to be compared."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from xray_pneumonia.config import build
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.tracking.registry import NAMED, find_registered
from xray_pneumonia.tracking.store import Store
from xray_pneumonia.tracking.stored_runs import RUN_ID
from xray_pneumonia.workflows.ensemble import STORED, Ensemble, load, load_folder
from xray_pneumonia.workflows.evaluation_data import HeldOut
from xray_pneumonia.workflows.find_model import find_model


def find(
    store: Store,
    cfg: DictConfig,
    settings: EvaluationSettings,
    *,
    run_id: Any = None,
    name: str | None = None,
    key: str = "model",
) -> Ensemble:
    """Find the model that is judged.

    Args:
        store: where runs are.
        cfg: of the command.
        settings: how to choose on validation what a run does not carry.
        run_id: of one run, or of several that answer as one.
        name: what `xray predict` would call it; instead of `run_id`.
        key: of the command line that names it so.

    Raises:
        InputError: there is no such model, or it is damaged or altered.
    """
    if name is not None and NAMED.match(name) and not Path(name).exists():
        run_id, name = find_registered(store, name).run_id, None
    if name is None:
        run_ids = [run_id] if isinstance(run_id, str) else list(run_id)
        return load(store, run_ids, settings, operating_point=cfg.operating_point)
    if cfg.operating_point != STORED:
        raise InputError(
            f"operating_point={cfg.operating_point}: it would be chosen on the predictions of a run, and {key}={name} "
            f"stands in a folder without them; leave operating_point={STORED}"
        )
    place = find_model(name, tracking=build(cfg.tracking), home=Path(cfg.home), key=key)
    if place.is_file():
        raise InputError(f"{key}={name}: an exported graph draws no heat maps; name the folder of its bundle")
    return load_folder(store, place, name=name)


def find_rival(store: Store, cfg: DictConfig, settings: EvaluationSettings) -> Ensemble | None:
    """Find what `compare_to` names, if anything."""
    named = cfg.compare_to
    if named is None:
        return None
    if isinstance(named, str) and not RUN_ID.match(named):
        return find(store, cfg, settings, name=named, key="compare_to")
    return find(store, cfg, settings, run_id=named)


def require_comparable(held_out: HeldOut, model: Ensemble, rival: Ensemble | None) -> None:
    """Refuse a split that the models were trained on, or see in another size."""
    known = model.validation
    if held_out.split == "val" and known is not None and set(held_out.records["id"]) != set(known["id"]):
        raise InputError(
            f"run_id: the validation predictions of {model.first.run.run_id} are about other images than its config "
            "names; the run was altered"
        )
    if rival is None:
        return
    if rival.first.card.image_size != model.first.card.image_size:
        raise InputError("compare_to: the two models see images of different size; compare runs of one data.image_size")
    if held_out.split == "val" and _validated_on(rival) != _validated_on(model):
        raise InputError(
            "compare_to: the two models validate on different images, so one may have trained on what the other is "
            "judged by; compare runs with the same data.split_seed and folds, or use split=test"
        )


def _validated_on(model: Ensemble) -> Any:
    """Tell validation splits apart by their images, or by the cut records where a folder holds no predictions."""
    if model.validation is None:
        return model.first.run.tags["records_fingerprint"]
    return set(model.validation["id"])
