"""How much slower is a training whose MLflow server is dead, or hangs? Alternating runs, one after the other.

Usage: python scripts/benchmarks/dead_server.py DIR [--rounds 5] [KEY=VALUE ...]

Each round trains three times on the X-rays of DIR: with a store that answers (SQLite), with a server whose port
is closed, and with one that takes connections and never answers. What counts is the time of the epochs, which the
run logs itself; the first epoch of each run warms up and is left out.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from xray_pneumonia.tracking.journal import journals


def main() -> None:
    """Run the rounds and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)  # takes connections, and says nothing
        stores = {
            "answers": "null",
            "dead": "http://127.0.0.1:9",
            "hangs": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }
        seconds: dict[str, list[float]] = {name: [] for name in stores}
        for number in range(asked.rounds):
            for name, uri in stores.items():
                home = Path(folder) / name / str(number)
                epochs = train(asked.data, home, uri, asked.overrides)
                seconds[name].append(sum(epochs[1:]))
            last = ", ".join(f"{name} {spent[-1]:.2f} s" for name, spent in seconds.items())
            print(f"round {number + 1}, load {os.getloadavg()[0]:.1f}: {last}", flush=True)
        for name in ("dead", "hangs"):
            ratios = [one / base for one, base in zip(seconds[name], seconds["answers"], strict=True)]
            middle = statistics.median(ratios)
            print(
                f"{name}: {100 * (middle - 1):+.1f} % (median of {len(ratios)}, {min(ratios):.3f} to {max(ratios):.3f})"
            )


def train(data: str, home: Path, uri: str, overrides: list[str]) -> list[float]:
    """Train once; returns the seconds of each epoch."""
    command = [sys.executable, "-m", "xray_pneumonia.cli", "train", f"data.root={data}", f"home={home}"]
    command += [f"data.cache_dir={home.parent.parent / 'cache'}", f"tracking.uri={uri}", "evaluation=quick"]
    done = subprocess.run([*command, *overrides], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    run_id = done.stdout.splitlines()[-1].split()[0].removeprefix("run_id=")
    kept = journals(home)
    if kept:
        entries = (entry for entry in kept[0].entries() if entry.what == "metrics")
        return [value for entry in entries for key, value, _, _ in entry.value if key == "time/epoch_seconds"]
    from mlflow import MlflowClient

    history = MlflowClient(f"sqlite:///{home}/mlflow.db").get_metric_history(run_id, "time/epoch_seconds")
    return [metric.value for metric in history]


if __name__ == "__main__":
    main()
