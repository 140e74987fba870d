"""How fast a trained net answers, engine against engine: python scripts/benchmarks/inference.py [MODEL].

MODEL is a bundle's folder; without one the shipped final model answers.
Every round runs all contenders in turn, so that whatever else the machine does meets them alike; medians
of the rounds. Nothing but two threads is asked for.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import xray_pneumonia
from xray_pneumonia.data.images.decode import decode, read_bytes
from xray_pneumonia.data.synthetic import draw, draw_patients
from xray_pneumonia.inference.bundles import Bundle, open_bundle
from xray_pneumonia.inference.engines import SMALL_BATCH, fold_batch_norms, in_batches, torch_engine
from xray_pneumonia.inference.loading import farthest, open_reader
from xray_pneumonia.inference.model import Engine, Vector
from xray_pneumonia.inference.onnx import GRAPH, read_graph, write_graph
from xray_pneumonia.types import Gray

ROUNDS, THREADS = 5, 2
FINAL = Path(xray_pneumonia.__file__).parent / "weights" / "final"
FILE_SIDE = 224


def run_module(net: torch.nn.Module, size: int) -> Engine:
    """Run a module of torch in batches."""

    def run(batch: Gray) -> Vector:
        with torch.inference_mode():
            return np.asarray(net(torch.from_numpy(np.array(batch))[:, None]).numpy(), np.float64)

    return in_batches(run, size)


def contenders(bundle: Bundle, folder: Path) -> dict[str, Engine]:
    """Make the engines."""
    plain_layout = fold_batch_norms(bundle.answer).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    write_graph(bundle, folder / GRAPH)
    example = torch.zeros(SMALL_BATCH, 1, bundle.card.image_size, bundle.card.image_size, dtype=torch.uint8)
    with torch.no_grad():
        traced = torch.jit.trace(fold_batch_norms(bundle.answer), example)  # type: ignore[no-untyped-call]
        frozen = torch.jit.freeze(traced)
    return {
        "torch, as trained, batches of 64": run_module(bundle.answer, 64),
        "torch, as trained": run_module(bundle.answer, SMALL_BATCH),
        "torch, batch norms folded, default layout": run_module(plain_layout, SMALL_BATCH),
        "torch, batch norms folded (engine=torch)": torch_engine(bundle.answer),
        "torch, traced and frozen": run_module(frozen, SMALL_BATCH),
        "onnxruntime (engine=onnx)": read_graph(folder / GRAPH)[1],
    }


def rates(work: dict[str, Callable[[], object]], count: int) -> dict[str, float]:
    """Time all in turn, round after round; returns the median of things per second."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(ROUNDS + 1):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: count / statistics.median(times) for name, times in seconds.items()}


def file_times(place: Path, folder: Path, *, engine: str) -> list[float]:
    """Time file -> answer, one 224-pixel JPEG after the other, with gate, label and abstention."""
    reader = open_reader(place, name="it", engine=engine)  # type: ignore[arg-type]
    seconds = []
    for path in sorted(folder.glob("*.jpeg")):
        start = time.perf_counter()
        reader.read(decode(read_bytes(path), reader.card.image_size).pixels[None])
        seconds.append(time.perf_counter() - start)
    return seconds[5:]


def write_files(folder: Path, count: int) -> None:
    """Draw JPEG files of 224 x 224 pixels."""
    for number, patient in zip(range(count), draw_patients(count, seed=0), strict=False):
        film = Image.fromarray((draw(patient, 0) * 255).astype(np.uint8)).resize((FILE_SIDE, FILE_SIDE))
        film.save(folder / f"{number:04d}.jpeg", quality=90)


def main() -> None:
    """Print one line for each contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, help="a bundle's folder")
    parser.add_argument("--images", type=int, default=512)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = asked.model or FINAL
        bundle = open_bundle(place, name="it")
        side = bundle.card.image_size
        parameters = sum(parameter.numel() for parameter in bundle.net.parameters())
        print(
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {THREADS} threads, load "
            f"{os.getloadavg()[0]:.1f}; torch {torch.__version__}, onnxruntime {version('onnxruntime')}"
        )
        print(f"{parameters:,} parameters at {side} x {side}; {asked.images} images from memory, {ROUNDS} rounds")
        images = np.random.default_rng(0).integers(0, 256, (asked.images, side, side)).astype(np.uint8)
        engines = contenders(bundle, folder)
        first = next(iter(engines.values()))
        found = rates({key: lambda e=engine: e(images) for key, engine in engines.items()}, asked.images)  # type: ignore[misc]
        slowest = next(iter(found.values()))
        for key, rate in found.items():
            apart = farthest(first, engines[key], images[:256])
            print(f"{key:<44} {rate:7.0f} images/s  {rate / slowest:5.2f} x  probabilities {apart:.0e} apart")
        write_files(folder, 105)
        for engine in ("torch", "onnx"):
            times = sorted(file_times(place, folder, engine=engine))
            print(
                f"file -> answer, engine={engine:<6} median {statistics.median(times) * 1000:5.1f} ms   95 % below "
                f"{times[int(0.95 * len(times))] * 1000:5.1f} ms"
            )
        print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
