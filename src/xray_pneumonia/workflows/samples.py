"""A few real X-rays to check a model on: the run's validation files, files given, generated ones."""

import logging
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xray_pneumonia.data import synthetic
from xray_pneumonia.data.images.decode import decode, read_bytes
from xray_pneumonia.data.images.limits import ImageError
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.tracking.registry import NAMED, find_registered
from xray_pneumonia.tracking.store import TrackingSettings, open_database
from xray_pneumonia.tracking.stored_runs import RUN_ID, StoredRun, read_run
from xray_pneumonia.types import Gray

PATIENTS = 30  # that are drawn where there is no real file
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """Images (N, S, S), and where they come from."""

    pixels: Gray
    origin: str


def take_sample(
    model: str, given: str | None, *, size: int, most: int, tracking: TrackingSettings, home: Path
) -> Sample:
    """Take the files given, else validation files of the model's run, else generated ones.

    Args:
        model: as it was asked for.
        given: a file or folder; none takes what there is.
        size: of the images, in pixels.
        most: at most so many, spread over what there is.
        tracking: where runs are.
        home: of the store.

    Raises:
        InputError: files were given, and none is a readable X-ray.
    """
    if given is not None:
        root = Path(given).expanduser()
        pixels = _decoded(_spread([root] if root.is_file() else sorted(root.rglob("*.*")), most), size)
        if not len(pixels):
            raise InputError(f"input={given}: no readable X-ray there")
        return Sample(pixels, f"given: {given}")
    pixels = _decoded(_spread(_validation_files(model, tracking, home), most), size)
    if len(pixels):
        return Sample(pixels, "validation files of the run")
    log.warning("the run's validation files are out of reach, so generated X-rays stand in; input=DIR names real ones")
    return Sample(_generated(size, most), "generated X-rays")


def _validation_files(model: str, tracking: TrackingSettings, home: Path) -> list[Path]:
    """Name the files of a run's validation split that are still where its config says."""
    if not (RUN_ID.match(model) or (NAMED.match(model) and not Path(model).exists())):
        return []
    store = open_database(tracking, home=home)
    run: StoredRun = read_run(store, model) if RUN_ID.match(model) else find_registered(store, model)
    try:
        root = Path(str(OmegaConf.create(run.config).data.root))  # type: ignore[union-attr]
        table = predictions.read(run.artifact("predictions/val.csv"))
    except (InputError, OmegaConfBaseException, AttributeError) as error:
        log.warning("run %s: %s", run.run_id, error)
        return []
    files = [(root / name) for name in table["id"]]
    return [path for path in files if path.resolve().is_relative_to(root.resolve()) and path.is_file()]


def _spread(paths: list[Path], most: int) -> list[Path]:
    return [paths[row] for row in np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int)]


def _decoded(paths: list[Path], size: int) -> Gray:
    images = []
    for path in paths:
        try:
            images.append(decode(read_bytes(path), size).pixels)
        except ImageError as error:
            log.warning("%s: left out: %s", path, error)
    return np.stack(images) if images else np.empty((0, size, size), np.uint8)


def _generated(size: int, most: int) -> Gray:
    with TemporaryDirectory() as folder:
        synthetic.generate(Path(folder) / "xrays", patients=PATIENTS, seed=0)
        return _decoded(_spread(sorted(Path(folder).rglob("*.jpeg")), most), size)
