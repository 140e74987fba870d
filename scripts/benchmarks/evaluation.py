"""How long intervals and heat maps take: python scripts/benchmarks/evaluation.py."""

import resource
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
from hydra import compose, initialize_config_module

from xray_pneumonia.config import build
from xray_pneumonia.evaluation.gradcam import grad_cam
from xray_pneumonia.evaluation.intervals import bootstrap
from xray_pneumonia.evaluation.predictions import tabulate

REPLICATES = 2000
MAPS = 780


def predictions(images: int) -> pd.DataFrame:
    """Draw a table of predictions; a patient has 1.8 images on average."""
    rng = np.random.default_rng(0)
    patient = rng.integers(0, int(images / 1.8), images)
    label = patient % 2
    records = pd.DataFrame({"id": "", "patient": patient.astype(str), "subtype": "", "label": label})
    return tabulate(records, np.arange(images), rng.normal(label * 3 - 1.5, 1.5))


def report(name: str, work: Callable[[], object]) -> None:
    """Time one piece of work."""
    start = time.perf_counter()
    work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:<48} {time.perf_counter() - start:7.2f} s   peak {peak:,.0f} MB")


def main() -> None:
    """Print one line for each piece of work."""
    for images in (624, 100_000):
        table = predictions(images)
        report(
            f"{REPLICATES} replicates of all metrics, {images} rows",
            lambda table=table: bootstrap(table, threshold=0.5, replicates=REPLICATES, seed=0),  # type: ignore[misc]
        )
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        net = build(compose("train", ["experiment=notebook_final"]).model)
    pictures = np.random.default_rng(0).integers(0, 256, (MAPS, 128, 128)).astype(np.uint8)
    report(f"{MAPS} Grad-CAM maps of notebook_final", lambda: grad_cam(net, pictures))


if __name__ == "__main__":
    main()
