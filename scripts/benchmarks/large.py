"""Time and memory of each step of a training and an evaluation on many generated films: large.py FILMS FOLDER.

Makes the films below FOLDER (a third of the side of `data=synthetic`'s: 100,000 take 0.5 GB), trains the small ResNet
for one epoch and evaluates it, each in a process of its own. Prints seconds, processor time an image (which a busy
machine changes little) and the peak of private memory, in which mapped images do not count.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil

from xray_pneumonia import cli
from xray_pneumonia.data import synthetic

TRAIN = [
    "data.image_size=32",
    "data.batch_size=100",
    "trainer.max_epochs=1",
    "trainer.threads=1",
    "tracking.system_metrics=false",
]
PEAK_SECONDS = 0.2  # between two looks at the memory
STEPS = {  # where a step is called -> what it does
    "xray_pneumonia.data.datamodule.scan": "scan",
    "xray_pneumonia.data.datamodule.open_cache": "decode",
    "xray_pneumonia.data.audit._near_pairs": "search for twins",
    "xray_pneumonia.data.datamodule.audit": "audit, twins included",
    "xray_pneumonia.data.datamodule.XRayDataModule._roles": "split",
    "xray_pneumonia.workflows.training.fit": "an epoch, validation included",
    "xray_pneumonia.workflows.evaluate._predict": "prediction",
    "xray_pneumonia.workflows.evaluate.evaluate": "evaluation, prediction included",
}


@dataclass
class Step:
    """What a step took."""

    name: str
    seconds: float
    computing: float
    peak: float  # MB


def _computed() -> float:
    known = os.times()
    return known.user + known.system + known.children_user + known.children_system


def _private() -> float:
    memory = psutil.Process().memory_info()
    return float(memory.rss - memory.shared) / 2**20


class Meter:
    """Measures functions while they run, and the whole process."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._peaks: list[float] = []  # of the steps that run
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            now = _private()
            self._peaks = [max(peak, now) for peak in self._peaks]
            time.sleep(PEAK_SECONDS)

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function."""

        def measured(*arguments: Any, **settings: Any) -> Any:
            began, computed = time.perf_counter(), _computed()
            self._peaks = [*self._peaks, _private()]
            try:
                return call(*arguments, **settings)
            finally:
                *self._peaks, peak = self._peaks
                step = Step(name, time.perf_counter() - began, _computed() - computed, max(peak, _private()))
                self.steps.append(step)

        return measured


def run(arguments: list[str], output: Path) -> None:
    """Run a command in this process and write what its steps took."""
    meter = Meter()
    with ExitStack() as stack:
        for place, name in STEPS.items():
            patch = mock.patch(place)
            original, _ = patch.get_original()
            stack.enter_context(mock.patch(place, meter.around(name, original)))
        sys.argv = ["xray", *arguments]
        code = meter.around(arguments[0], cli.main)()
    output.write_text(json.dumps([asdict(step) for step in meter.steps]), encoding="utf-8")
    sys.exit(code)


class Small(np.random.Generator):
    """Draws sides of a third of the size: a film takes a ninth of the time."""

    def integers(self, low: Any, high: Any = None, *rest: Any, **settings: Any) -> Any:
        """Draw integers; those of a film's sides are smaller."""
        drawn = super().integers(low, high, *rest, **settings)
        return drawn // 3 if low in (140, 160) else drawn


def write(work: tuple[Path, synthetic.Patient]) -> None:
    """Write the films of one patient."""
    smaller: Callable[..., Small] = lambda seed: Small(np.random.PCG64(seed))  # noqa: E731
    with mock.patch.object(np.random, "default_rng", smaller):
        synthetic._write(*work)


def make(films: int, root: Path) -> None:
    """Make the films, two on average of each patient."""
    if (root / "made").exists():
        return
    with Pool(os.cpu_count()) as pool:
        list(pool.imap_unordered(write, ((root, one) for one in synthetic.draw_patients(films // 2, 0)), 64))
    (root / "made").touch()


def main() -> None:
    """Make films, train, evaluate, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("films", type=int)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    root = asked.folder.resolve() / str(asked.films)
    root.parent.mkdir(parents=True, exist_ok=True)
    make(asked.films, root)
    home, output = asked.folder.resolve() / f"home-{asked.films}", asked.folder.resolve() / "steps.json"
    known = len(list(root.rglob("*.jpeg")))
    print(f"{known} films")
    for verb in ("train", "evaluate"):
        own = [f"data.root={root}", *TRAIN] if verb == "train" else ["run_id=last", "split=test"]
        command = [sys.executable, __file__, "--run", str(output), verb, *own, f"home={home}"]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(f"{verb}: {time.perf_counter() - began:.0f} s, imports included")
        for step in [Step(**each) for each in json.loads(output.read_text(encoding="utf-8"))]:
            micro = 1e6 * step.computing / known
            print(f"  {step.name:32} {step.seconds:7.1f} s  {micro:7.0f} us of computing an image  {step.peak:5.0f} MB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[3:], Path(sys.argv[2]))
    main()
