"""Every figure on speed, in one go: make bench DATA=DIR, or python scripts/benchmarks/bench.py DIR.

Ways to train run in pairs, each in a process of its own, and take turns step by step, so that what else the machine
does meets both; medians of the ratios of neighbouring steps are printed and appended to docs/performance.md.
What works ahead in a thread is timed in whole trainings, alternately.
Nothing else should run on the machine.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "docs" / "performance.md"
ORIGINALS = 5_856
Row = tuple[str, str, str]  # what, measured, must reach
RACES = [  # what, one, the other, how many times the steps (closer races need more), must reach
    ("`xray train` against first-day Lightning", "xray", "first_day", 2, "<= 0.45"),
    ("`xray train` against our bare loop", "xray", "pooling", 4, "<= 1.02"),
    ("lever: channels_last", "layout", "array", 1, ""),
    ("lever: freed memory kept", "allocator", "layout", 1, ""),
    ("lever: pooling before activation", "pooling", "allocator", 1, ""),
    ("lever: all threads against one", "pooling", "one_thread", 1, ""),
    ("lever: fused RMSprop", "pooling", "plain_step", 2, ""),
    ("lever: fused AdamW, resnet", "xray_none", "xray_plain_step", 2, ""),
]

CACHE = """
import sys, time
from xray_pneumonia.data.records import scan
from xray_pneumonia.data.images.cache import open_cache
start = time.perf_counter()
cache = open_cache(scan(sys.argv[1]), folder=sys.argv[2], image_size=128)
print(len(cache.records), time.perf_counter() - start)
"""


def answer(*command: str, threads: int | None = None) -> str:
    """Run Python and return its last line."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)[:200]} failed:\n{done.stderr[-2000:]}")
    return done.stdout.splitlines()[-1]


def timed(way: str, root: Path, home: str, *, steps: int) -> str:
    """Time one way."""
    return answer(str(HERE / "steps.py"), way, str(root), home, "--steps", str(steps))


@dataclass(frozen=True)
class Race:
    """Two ways that took turns, step by step: the ratio of neighbouring steps, and what each of them reported."""

    ratio: float
    low: float
    high: float
    pairs: int
    one: dict[str, Any]
    other: dict[str, Any]

    def told(self) -> str:
        """Word it."""
        steps = f"{self.one['step'] * 1000:.0f} and {self.other['step'] * 1000:.0f} ms"
        return f"{self.ratio:.3f} (95 %: {self.low:.3f} to {self.high:.3f}, {self.pairs} pairs; {steps})"


def race(one: str, other: str, root: Path, home: str, *, steps: int) -> Race:
    """Have two ways take turns, so that the machine's swings meet both; 95 % by resampling the pairs."""
    pipes = os.pipe(), os.pipe()
    os.write(pipes[0][1], b".")  # the first one begins
    running = [
        subprocess.Popen(
            [
                *(sys.executable, str(HERE / "steps.py"), way, str(root), home, "--steps", str(steps)),
                *("--turns", str(pipes[own][0]), str(pipes[1 - own][1])),
            ],
            pass_fds=(pipes[own][0], pipes[1 - own][1]),
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for own, way in enumerate((one, other))
    ]
    for ends in pipes:
        for end in ends:
            os.close(end)
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit(f"taking turns failed; `steps.py {one}` and `steps.py {other}` say why when they run alone")
    ours, theirs = (json.loads(each.splitlines()[-1]) for each in said)
    pairs = zip(ours["steps"], theirs["steps"], strict=False)  # an epoch may end before the steps are through
    ratios = np.array([mine / its for mine, its in pairs])
    medians = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    found = Race(float(np.median(ratios)), float(low), float(high), len(ratios), ours, theirs)
    print(f"{one} against {other}: {found.told()}", file=sys.stderr, flush=True)
    return found


def races(root: Path, home: str, *, steps: int) -> list[Row]:
    """Run them all."""
    rows = [
        (what, race(one, other, root, home, steps=steps * times).told(), target)
        for what, one, other, times, target in RACES
    ]
    found = race("ceiling", "pooling", root, home, steps=2 * steps)
    scale = found.other["flop"] / found.one["flop"]  # a step of training does so many times the work of a product
    share = f"{found.ratio * scale:.0%} ({found.low * scale:.0%} to {found.high * scale:.0%}, {found.pairs} pairs)"
    return [*rows, ("share of the matrix-product ceiling", share, ">= 50 %")]


def alone_rows(root: Path, home: str, *, rounds: int, steps: int) -> list[Row]:
    """Run whole trainings alternately: a thread that prepares batches would work on in the other's turn."""
    found: dict[str, list[dict[str, float]]] = {"xray_strong": [], "xray_none": []}
    for _ in range(rounds):
        for way, known in found.items():
            known.append(json.loads(timed(way, root, home, steps=steps)))
    starts = sorted(each["first"] for each in found["xray_strong"])
    strong, none = (statistics.median(each["step"] for each in known) for known in found.values())
    told = f"{strong / none:.3f} ({rounds} rounds; {strong * 1000:.0f} and {none * 1000:.0f} ms)"
    waited = f"{statistics.median(starts):.1f} s ({starts[0]:.1f} to {starts[-1]:.1f}, {rounds} starts)"
    return [
        ("`augmentation=strong` against `none`, resnet", told, "<= 1.10"),
        ("typing `xray train` to the first step", waited, "<= 9 s"),
    ]


def originals_row(originals: Path, folder: Path) -> Row:
    """Decode full-size films, repeated under other names."""
    files = sorted(path for path in originals.rglob("*") if path.suffix.lower() in {".jpeg", ".jpg", ".png"})
    for number in range(ORIGINALS):
        path = files[number % len(files)]
        home = folder / "films" / path.relative_to(originals).parent
        home.mkdir(parents=True, exist_ok=True)
        film = home / f"person{number}_bacteria_{number}{path.suffix}"
        if number < len(files):
            shutil.copyfile(path, film)
        else:  # a symbolic link out of the folder would be refused
            os.link(home / f"person{number % len(files)}_bacteria_{number % len(files)}{path.suffix}", film)
    images, seconds = answer("-c", CACHE, str(folder / "films"), str(folder / "cache")).split()
    return (f"{images} originals into the cache", f"{float(seconds):.1f} s", "<= 25 s")


def growth_rows(folder: Path, *, steps: int) -> list[Row]:
    """Train on caches of 5,000 and of 100,000 images."""
    growth = str(HERE / "growth.py")
    small, large = (
        [float(each) for each in answer(growth, str(images), str(folder), "--steps", str(steps)).split()]
        for images in (5_000, 100_000)
    )
    return [
        ("memory of a training on 100,000 images against 5,000", f"{large[0] - small[0]:+.0f} MB", "<= +200 MB"),
        ("time to serve an image of 100,000, of 5,000", f"{large[1]:.1f} us, {small[1]:.1f} us", "flat"),
    ]


def append(rows: list[Row], *, seconds: float) -> None:
    """Print the table and keep it."""
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "pytorch-lightning", "mlflow", "albumentations")
    )
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    lines = [
        f"### {time.strftime('%Y-%m-%d %H:%M')}",
        "",
        f"{machine}; {packages}; load at the end {load}; {seconds / 60:.0f} minutes.",
        "",
        "| what | measured | must reach |",
        "| --- | --- | --- |",
        *(f"| {what} | {measured} | {target} |" for what, measured, target in rows),
        "",
    ]
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="a folder of X-rays in the public layout")
    parser.add_argument("--originals", type=Path, help="full-size films in the public layout")
    parser.add_argument("--rounds", type=int, default=3, help="of whole trainings")
    parser.add_argument("--steps", type=int, default=16, help="of each training, or more; the first four only warm up")
    asked, start = parser.parse_args(), time.perf_counter()
    if asked.originals and not (asked.originals / "train").is_dir():
        parser.error(f"--originals {asked.originals}: holds no folder train; name a folder in the public layout")
    with tempfile.TemporaryDirectory() as folder:
        timed("xray_none", asked.root, folder, steps=asked.steps)  # makes the cache and the store
        rows = races(asked.root, folder, steps=asked.steps)
        rows += alone_rows(asked.root, folder, rounds=asked.rounds, steps=4 * asked.steps)
        rows += growth_rows(Path(folder), steps=asked.steps)
        if asked.originals:
            rows.append(originals_row(asked.originals.resolve(), Path(folder)))
    append(rows, seconds=time.perf_counter() - start)
    subprocess.run([sys.executable, str(HERE / "inference.py"), "--images", "256"], check=True)


if __name__ == "__main__":
    main()
