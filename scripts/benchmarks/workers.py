"""Trials a minute of one worker and of two, in turn, on generated X-rays: python scripts/benchmarks/workers.py.

Time is that of the trials alone, from the first one's start to the last one's end: starting processes is not a
matter of how well they share a study. Nothing else should run on the machine.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import optuna

TRIAL = ["model=cnn", "data=synthetic", "data.image_size=128", "trainer.max_epochs=2", "evaluation=quick"]
SPACE = "optimizer.lr=tag(log,interval(1e-4,1e-2))"


def rate(workers: int, home: Path, trials: int) -> float:
    """Run one sweep; returns its trials a minute."""
    name = f"workers_{workers}_{len(list(home.glob('multirun/*')))}"
    command = [sys.executable, "-m", "xray_pneumonia.cli", "train", "-m", *TRIAL, SPACE, f"home={home}"]
    command += [f"workers={workers}", f"sweep.name={name}", f"sweep.n_trials={trials}", "sweep.sampler=random"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    told = optuna.load_study(study_name=name, storage=f"sqlite:///{home}/sweeps.db").trials
    begun = [trial.datetime_start for trial in told if trial.datetime_start]
    ended = [trial.datetime_complete for trial in told if trial.datetime_complete]
    return 60 * len(told) / (max(ended) - min(begun)).total_seconds()


def main() -> None:
    """Print the rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--trials", type=int, default=8)
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.rounds):
            for workers, known in rates.items():
                known.append(rate(workers, Path(folder), asked.trials))
            print(f"round {number + 1}: {rates[1][-1]:.1f}, {rates[2][-1]:.1f} trials a minute", flush=True)
    one, two = (statistics.median(known) for known in rates.values())
    print(f"two workers against one: {two / one:.2f} x ({one:.1f}, {two:.1f} a minute), {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
