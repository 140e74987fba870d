"""An epoch of the ResNet at 128 x 128 on a GPU, batch 512, bf16, augmentation on: python scripts/benchmarks/gpu.py DIR.

Trains through `xray train`, MLflow on, plain and compiled, and prints the median second of the later epochs: the first
ones compile, and fill caches.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

EPOCHS, FIRST = 8, 3
WAYS = {"plain": "trainer.compile=false", "compiled": "trainer.compile=true"}
TARGET = 0.35  # seconds


def epochs(root: Path, home: Path, override: str) -> list[float]:
    """Train once; returns the seconds of the later epochs."""
    from mlflow import MlflowClient

    command = [sys.executable, "-m", "xray_pneumonia.cli", "train", f"data.root={root}", f"home={home}", "trainer=gpu"]
    command += ["augmentation=strong", "data.batch_size=512", f"trainer.max_epochs={EPOCHS}", "trainer.patience=null"]
    done = subprocess.run([*command, "evaluation=quick", override], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    run_id = done.stdout.splitlines()[-1].split()[0].removeprefix("run_id=")
    history = MlflowClient(f"sqlite:///{home}/mlflow.db").get_metric_history(run_id, "time/epoch_seconds")
    return [metric.value for metric in sorted(history, key=lambda one: one.step)][FIRST:]


def main() -> None:
    """Print one line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="a folder of X-rays in the public layout")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU that torch can use: nothing was measured")
        return
    print(f"{torch.cuda.get_device_name()}; torch {version('torch')}; {EPOCHS - FIRST} epochs each")
    with tempfile.TemporaryDirectory() as folder:
        for way, override in WAYS.items():
            seconds = epochs(asked.root.resolve(), Path(folder), override)
            print(f"{way:<9} {statistics.median(seconds):.3f} s an epoch (at most {TARGET} s is asked for)", flush=True)


if __name__ == "__main__":
    main()
