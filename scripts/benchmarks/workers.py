"""Trials a minute of one worker, of two and of four, in turn: python scripts/benchmarks/workers.py.

On generated X-rays. Time is that of the trials alone, from the first one's start to the last one's end: starting
processes is not a matter of how well they share a study. Nothing else should run on the machine; the load is printed,
and the processor time of a trial (starting included), which tells what sharing costs where something does.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import optuna

TRIAL = ["model=cnn", "data=synthetic", "trainer.max_epochs=2", "evaluation=quick"]
SPACE = "optimizer.lr=tag(log,interval(1e-4,1e-2))"


def computed() -> float:
    """Add up the processor time of the processes that ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def rate(workers: int, number: int, home: Path, asked: argparse.Namespace) -> tuple[float, float]:
    """Run one sweep; returns its trials a minute and the processor seconds of each."""
    name, began = f"workers_{workers}_{number}", computed()
    command = [sys.executable, "-m", "xray_pneumonia.cli", "train", "-m", *TRIAL, SPACE, f"home={home}"]
    command += [f"workers={workers}", f"sweep.name={name}", f"sweep.n_trials={asked.trials}", "sweep.sampler=random"]
    done = subprocess.run([*command, f"data.image_size={asked.size}"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    told = optuna.load_study(study_name=name, storage=f"sqlite:///{home}/sweeps.db").trials
    begun = [trial.datetime_start for trial in told if trial.datetime_start]
    ended = [trial.datetime_complete for trial in told if trial.datetime_complete]
    seconds = (max(ended) - min(begun)).total_seconds()
    return 60 * len(told) / seconds, (computed() - began) / len(told)


def main() -> None:
    """Print the rates and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--size", type=int, default=128, help="of the images")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rates: dict[int, list[float]] = {workers: [] for workers in asked.workers}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.rounds):
            for workers, known in rates.items():
                trials, seconds = rate(workers, number, Path(folder), asked)
                known.append(trials)
                rest = f"{seconds:.1f} s of computing, load {os.getloadavg()[0]:.0f}"
                print(f"round {number + 1}, {workers} workers: {trials:.1f} a minute, {rest}", flush=True)
    first = rates[asked.workers[0]]
    for workers, known in rates.items():
        ratio = statistics.median(many / one for many, one in zip(known, first, strict=True))
        print(f"{workers} workers: {statistics.median(known):.1f} a minute, {ratio:.2f} x, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
