"""Every figure on speed, in one go: make bench DATA=DIR, or python scripts/benchmarks/bench.py DIR.

Contenders run one after the other, round after round, each in a process of its own; medians and ratios of medians are
printed and appended to RESULTS.md beside this file. Nothing else should run on the machine.
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
from importlib.metadata import version
from pathlib import Path

import numpy as np
from steps import BARE, XRAY

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
ORIGINALS = 5_856
Row = tuple[str, str, str]  # what, measured, must reach

CACHE = """
import sys, time
from xray_pneumonia.data.records import scan
from xray_pneumonia.data.cache import open_cache
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


def contest(root: Path, home: str, *, rounds: int, steps: int) -> dict[str, dict[str, float]]:
    """Run all ways alternately; returns the median of all that each of them prints."""
    found: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds):
        for way in (*BARE, *XRAY, "first_day"):
            found.setdefault(way, []).append(json.loads(timed(way, root, home, steps=steps)))
            print(
                f"round {number + 1}: {way} {found[way][-1]['step'] * 1000:.0f} ms a step", file=sys.stderr, flush=True
            )
    return {
        way: {key: statistics.median(each[key] for each in answers) for key in answers[0]}
        for way, answers in found.items()
    }


def tax(root: Path, home: str, *, steps: int) -> str:
    """Have `xray train` and our bare loop take turns step by step; words the median ratio of neighbouring steps."""
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
        for own, way in enumerate(("xray", "pooling"))
    ]
    for ends in pipes:
        for end in ends:
            os.close(end)
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit("taking turns failed; `steps.py xray` and `steps.py pooling` say why when they run alone")
    ours, bare = (json.loads(each.splitlines()[-1])["steps"] for each in said)
    ratios = np.array([one / other for one, other in zip(ours, bare, strict=False)])  # an epoch may be short
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return f"{np.median(ratios):.3f} (95 %: {low:.3f} to {high:.3f}, {len(ratios)} pairs of steps)"


def steps_rows(found: dict[str, dict[str, float]]) -> list[Row]:
    """Word the contest."""

    def ratio(way: str, other: str) -> str:
        return f"{found[way]['step'] / found[other]['step']:.3f}"

    best = found["pooling"]
    share = best["flop"] / best["step"] / best["ceiling"]
    rows = [(f"a step of 64: {way}", f"{each['step'] * 1000:.0f} ms", "") for way, each in found.items()]
    return [
        *rows,
        ("`xray train` against first-day Lightning", ratio("xray", "first_day"), "<= 0.45"),
        ("share of the matrix-product ceiling", f"{share:.0%}", ">= 50 %"),
        ("lever: channels_last", ratio("layout", "array"), ""),
        ("lever: freed memory kept", ratio("allocator", "layout"), ""),
        ("lever: pooling before activation", ratio("pooling", "allocator"), ""),
        ("lever: all threads against one", ratio("pooling", "one_thread"), ""),
        ("lever: fused RMSprop", ratio("pooling", "plain_step"), ""),
        ("lever: fused AdamW, resnet", ratio("xray_none", "xray_plain_step"), ""),
        ("`augmentation=strong` against `none`, resnet", ratio("xray_strong", "xray_none"), "<= 1.10"),
        ("typing `xray train` to the first step", f"{found['xray_strong']['first']:.1f} s", "<= 9 s"),
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


def append(rows: list[Row], *, seconds: float, rounds: int) -> None:
    """Print the table and keep it."""
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "pytorch-lightning", "mlflow", "albumentations")
    )
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    lines = [
        f"## {time.strftime('%Y-%m-%d %H:%M')}",
        "",
        f"{machine}; {packages}; load at the end {load}; medians of {rounds} rounds; {seconds / 60:.0f} minutes.",
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
    parser.add_argument("--originals", type=Path, help="a folder with full-size films")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=16, help="of each training; the first four only warm up")
    asked, start = parser.parse_args(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        timed("xray_none", asked.root, folder, steps=asked.steps)  # makes the cache and the store
        rows = steps_rows(contest(asked.root, folder, rounds=asked.rounds, steps=asked.steps))
        rows.append(("`xray train` against our bare loop", tax(asked.root, folder, steps=4 * asked.steps), "<= 1.02"))
        rows += growth_rows(Path(folder), steps=asked.steps)
        if asked.originals:
            rows.append(originals_row(asked.originals.resolve(), Path(folder)))
    append(rows, seconds=time.perf_counter() - start, rounds=asked.rounds)
    subprocess.run([sys.executable, str(HERE / "inference.py"), "--images", "256"], check=True)


if __name__ == "__main__":
    main()
