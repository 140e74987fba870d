"""Starts eight trainings at once on an empty store, round after round, and counts the runs in its experiments.

Usage: python scripts/benchmarks/first_start.py [--rounds 10] [--jobs 8]
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from mlflow import MlflowClient


def main() -> None:
    """Run the rounds and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=8)
    asked = parser.parse_args()
    landed = strays = tracebacks = failed = 0
    command = [sys.executable, "-m", "xray_pneumonia.cli", "train", "trainer=smoke", "data=synthetic"]
    for number in range(asked.rounds):
        with tempfile.TemporaryDirectory() as folder:
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
            jobs = [subprocess.Popen(command, **pipes) for _ in range(asked.jobs)]  # type: ignore[call-overload]
            answers = [job.communicate() for job in jobs]
            tracebacks += sum("Traceback" in err for _, err in answers)
            failed += sum(job.returncode != 0 for job in jobs)
            client = MlflowClient(f"sqlite:///{Path(folder)}/mlruns/mlflow.db")
            for experiment in client.search_experiments():
                runs = len(client.search_runs([experiment.experiment_id]))
                landed += runs if experiment.name == "xray" else 0
                strays += runs if experiment.name != "xray" else 0
        print(f"round {number + 1}: {landed} runs landed, {strays} elsewhere, {failed} failed, {tracebacks} tracebacks")
    sys.exit(bool(strays or failed or tracebacks or landed != asked.rounds * asked.jobs))


if __name__ == "__main__":
    main()
