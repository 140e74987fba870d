"""Times `xray predict` and single images: python scripts/benchmarks/predict.py DIR [MODEL].

DIR holds JPEGs of 224 pixels. Without MODEL, a small residual net with random weights answers.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_module

from xray_pneumonia.config import build, plain
from xray_pneumonia.data.images.decode import decode, read_bytes
from xray_pneumonia.evaluation.input_gate import fit_thumbnail_gate
from xray_pneumonia.inference.bundle import GATE, Card, save_bundle
from xray_pneumonia.inference.loading import EngineName, load_model

SINGLES = 200
FILES = 10_000
COMMAND = """
import resource, sys
from xray_pneumonia import cli
code = cli.main()
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def small_net(folder: Path, films: list[Path]) -> Path:
    """Write a bundle with random weights and a gate that knows the films."""
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        cfg = compose("train", ["model=resnet"])
    size = cfg.data.image_size
    card = Card(
        net=plain(cfg.model), class_names=["NORMAL", "PNEUMONIA"], image_size=size, temperature=1.0,
        operating_point=0.5, operating_point_policy="none", records_fingerprint="", run_id="", versions={},
        band=[0.4, 0.6],
    )  # fmt: skip
    torch.manual_seed(0)
    save_bundle(folder, build(cfg.model).eval(), card)
    some = films[:: max(1, len(films) // 200)]  # evenly: a gate of one class would stop the other
    seen = np.stack([decode(read_bytes(film), size).pixels for film in some])
    fit_thumbnail_gate(seen, seen).write(folder / GATE)
    return folder


def single(place: Path, films: list[Path], engine: EngineName) -> None:
    """Time one image after the other, from the bytes on disk to the answer, in this process."""
    model = load_model(place, name="", engine=engine)
    times = []
    for film in films[:SINGLES]:
        start = time.perf_counter()
        model.decide(decode(read_bytes(film), model.card.image_size).pixels[None])
        times.append(1000 * (time.perf_counter() - start))
    worst = sorted(times)[int(0.95 * len(times))]
    print(f"one image after load, {engine:<5}: {statistics.median(times):6.1f} ms median, {worst:.1f} ms at 95 %")


def many(model: Path, films: list[Path], count: int) -> None:
    """Time the command on so many files, start included."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in"
        source.mkdir()
        for number in range(count):
            (source / f"{number:05}.jpeg").write_bytes(films[number % len(films)].read_bytes())
        arguments = ["predict", f"model={model}", f"input={source}", f"output={folder}/out", "sheet_images=100"]
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, check=True)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        work = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = int(done.stdout.split()[-1]) / 1024
    print(
        f"{count:>6} files: {wall:6.1f} s wall, {count / wall:5.0f} images/s; {work:6.1f} s of processor time; "
        f"peak {peak:,.0f} MB",
        flush=True,
    )


def main() -> None:
    """Print one line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="a folder of X-rays")
    parser.add_argument("model", type=Path, nargs="?", help="a bundle's folder")
    given = parser.parse_args()
    films = sorted(given.root.rglob("*.jpeg"))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or small_net(Path(folder), films)
        for engine in ("torch", "onnx"):
            single(model, films, engine)  # type: ignore[arg-type]
        for count in (1, 1_000, FILES):
            many(model, films, count)


if __name__ == "__main__":
    main()
