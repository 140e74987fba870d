"""A trained model by whatever name it goes: a run, an alias, a folder, an exported file, one that came along."""

import logging
import re
from importlib.resources import files
from pathlib import Path
from typing import Literal

from xray_pneumonia.errors import InputError
from xray_pneumonia.models.bundle import CARD
from xray_pneumonia.reading.bundles import Bundle, open_bundle
from xray_pneumonia.reading.engines import torch_engine
from xray_pneumonia.reading.ensemble import ENSEMBLE, open_ensemble
from xray_pneumonia.reading.reader import Reader
from xray_pneumonia.tracking.archive import RUN_ID, read_run
from xray_pneumonia.tracking.registry import NAMED, find_registered
from xray_pneumonia.tracking.store import TrackingSettings, open_database

EngineName = Literal["auto", "torch", "onnx"]
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
    folder = find_folder(model, tracking=tracking, home=home)
    log.info("model %s: %s", model, folder)
    return read_folder(folder, name=model, engine=engine)


def read_folder(folder: Path, *, name: str = "", engine: EngineName = "auto") -> Reader:
    """Load a trained model from its folder; `name` is what to call it.

    Raises:
        InputError: a file is missing, damaged or altered.
    """
    bundle = open_folder(folder, name=name or str(folder))
    return Reader(bundle.name, bundle.card, bundle.gate, bundle.net, torch_engine(bundle.answer))


def open_folder(folder: Path, *, name: str) -> Bundle:
    """Open a bundle or an ensemble, whichever the folder holds.

    Raises:
        InputError: a file is missing, damaged or altered.
    """
    return (open_ensemble if (folder / ENSEMBLE).exists() else open_bundle)(folder, name=name)


def find_folder(model: str, *, tracking: TrackingSettings, home: Path) -> Path:
    """Find the folder with a trained model's files.

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
    if (folder / CARD).is_file() or (folder / ENSEMBLE).is_file():
        return folder.resolve()
    raise InputError(f"model={model}: {_explain(model, folder, sorted(shipped))}")


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
