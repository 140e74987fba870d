"""A trained model by whatever name it goes: a run, an alias, a folder, an exported file, one that came along."""

import logging
import re
from importlib.resources import files
from pathlib import Path

from xray_pneumonia.errors import InputError
from xray_pneumonia.inference.bundle import CARD
from xray_pneumonia.inference.ensemble import ENSEMBLE
from xray_pneumonia.inference.loading import EngineName, open_reader
from xray_pneumonia.inference.model import Reader
from xray_pneumonia.tracking.registry import NAMED, find_registered
from xray_pneumonia.tracking.store import TrackingSettings, open_database
from xray_pneumonia.tracking.stored_runs import RUN_ID, read_run

SHIPPED = re.compile(r"^\w+$")
log = logging.getLogger(__name__)


def load_reader(model: str, *, tracking: TrackingSettings, home: Path, engine: EngineName) -> Reader:
    """Load a trained model.

    Args:
        model: a run id; NAME@ALIAS of the registry; a folder with a bundle or an ensemble; an exported
            `.onnx` file; or the name of a model that came with this package.
        tracking: where runs are, for the first two; the others touch nothing of MLflow.
        home: of the store.
        engine: `auto` takes the fastest that gives equal results.

    Raises:
        InputError: there is no such model, or it is damaged or altered.
    """
    place = find_model(model, tracking=tracking, home=home)
    log.info("model %s: %s", model, place)
    return open_reader(place, name=model, engine=engine)


def find_model(model: str, *, tracking: TrackingSettings, home: Path, key: str = "model") -> Path:
    """Find a trained model's folder or exported file; the arguments are those of `load_reader`, and the key naming it.

    Raises:
        InputError: there is no such model.
    """
    if RUN_ID.match(model):
        return read_run(open_database(tracking, home=home), model).bundle()
    if NAMED.match(model) and not Path(model).exists():
        return find_registered(open_database(tracking, home=home), model).bundle()
    shipped = shipped_models()
    if model in shipped:
        return shipped[model]
    folder = Path(model).expanduser()
    exported = folder.suffix == ".onnx" and folder.is_file()
    if exported or (folder / CARD).is_file() or (folder / ENSEMBLE).is_file():
        return folder.resolve()
    raise InputError(f"{key}={model}: {_explain(model, folder, sorted(shipped))}")


def shipped_models() -> dict[str, Path]:
    """Name the models that came with this package, and their folders."""
    home = Path(str(files("xray_pneumonia"))) / "weights"
    found = (*home.glob(f"*/{CARD}"), *home.glob(f"*/{ENSEMBLE}"))
    return {path.parent.name: path.parent for path in sorted(found)}


def _explain(model: str, folder: Path, shipped: list[str]) -> str:
    if folder.is_dir():
        return f"this folder holds neither {CARD} nor {ENSEMBLE}"
    there = (
        f"those that came with this package are {', '.join(shipped)}" if shipped else "no model came with this package"
    )
    how = "give a run id, NAME@ALIAS, a folder with a bundle or an exported .onnx file"
    kind = "no such model" if SHIPPED.match(model) else "no such file, folder or run"
    return f"{kind}; {there}; {how}"
