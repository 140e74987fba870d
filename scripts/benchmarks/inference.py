"""Times a trained model, engine against engine: python scripts/benchmarks/inference.py [MODEL].

MODEL is a bundle's folder; without one the shipped final model answers. Every round runs all engines in turn, so that
the load of the machine meets them alike; printed are medians of the rounds, with two threads.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import xray_pneumonia
from xray_pneumonia.data.images.decode import decode, read_bytes
from xray_pneumonia.data.synthetic import draw, draw_patients
from xray_pneumonia.inference.loading import load_model
from xray_pneumonia.inference.model import TrainedModel

ROUNDS, THREADS = 5, 2
FINAL = Path(xray_pneumonia.__file__).parent / "weights" / "final"
FILE_SIDE = 224


def rates(models: dict[str, TrainedModel], count: int) -> dict[str, float]:
    """Time all models in turn, round after round; returns the median of images per second."""
    side = next(iter(models.values())).card.image_size
    images = np.random.default_rng(0).integers(0, 256, (count, side, side)).astype(np.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(ROUNDS + 1):
        for name, model in models.items():
            start = time.perf_counter()
            model.probabilities(images)
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: count / statistics.median(times) for name, times in seconds.items()}


def file_times(model: TrainedModel, folder: Path) -> list[float]:
    """Time file -> answer, one 224-pixel JPEG after the other, with gate, label and abstention."""
    seconds = []
    for path in sorted(folder.glob("*.jpeg")):
        start = time.perf_counter()
        model.decide(decode(read_bytes(path), model.card.image_size).pixels[None])
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[5:])


def write_files(folder: Path, count: int) -> None:
    """Draw JPEG files of 224 x 224 pixels."""
    for number, patient in zip(range(count), draw_patients(count, seed=0), strict=False):
        image = Image.fromarray((draw(patient, 0) * 255).astype(np.uint8)).resize((FILE_SIDE, FILE_SIDE))
        image.save(folder / f"{number:04d}.jpeg", quality=90)


def main() -> None:
    """Print one line for each engine and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, default=FINAL, help="a bundle's folder")
    parser.add_argument("--images", type=int, default=512)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(THREADS)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {THREADS} threads, load "
        f"{os.getloadavg()[0]:.1f}; torch {torch.__version__}, onnxruntime {version('onnxruntime')}"
    )
    models = {engine: load_model(asked.model, name="", engine=engine) for engine in ("torch", "onnx")}  # type: ignore[arg-type]
    for engine, rate in rates(models, asked.images).items():
        print(f"engine={engine:<6} {rate:7.0f} images/s from memory")
    with tempfile.TemporaryDirectory() as name:
        write_files(Path(name), 105)
        for engine, model in models.items():
            times = file_times(model, Path(name))
            print(
                f"engine={engine:<6} file -> answer: median {statistics.median(times) * 1000:5.1f} ms, 95 % below "
                f"{times[int(0.95 * len(times))] * 1000:5.1f} ms"
            )
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
