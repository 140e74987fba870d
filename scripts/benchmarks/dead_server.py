"""Measures how much slower training is when the MLflow server is dead or hangs, and whether anything is lost.

Usage: python scripts/benchmarks/dead_server.py DIR [--rounds 5] [KEY=VALUE ...]

Each round trains three times on the X-rays of DIR: with a store that answers (SQLite), with a server whose port
is closed, and with one that takes connections and never answers. What counts is the time of the epochs, which the
run logs itself; the first epoch of each run warms up and is left out. The processor time of the whole command, which
a busy machine changes less, is printed with it.

Then a server is started on each of the two ports and is sent what was spooled for it; the program fails if a metric
is missing there or is there twice.
"""

import argparse
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from xray_pneumonia.tracking.spool import Spool, spools
from xray_pneumonia.tracking.sync import sync

LOCAL = "127.0.0.1"


@dataclass(frozen=True)
class Spent:
    """Seconds of one training: of its epochs by the clock, of the whole command by the processor."""

    epochs: float
    processor: float


def main() -> None:
    """Run the rounds, print the ratios, and see that nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as closed, socket.socket() as silent:
            for one in (closed, silent):
                one.bind((LOCAL, 0))
            silent.listen(64)  # takes connections, and says nothing; the other one refuses them
            ports = {"dead": closed.getsockname()[1], "hangs": silent.getsockname()[1]}
            compare(asked.data, asked.rounds, asked.overrides, Path(folder), ports)
        for name, port in ports.items():
            with server(port, Path(folder) / f"{name} server"):
                for number in range(asked.rounds):
                    deliver(name, f"http://{LOCAL}:{port}", Path(folder) / name / str(number))


def compare(data: str, rounds: int, overrides: list[str], folder: Path, ports: dict[str, int]) -> None:
    """Train in turn with each store; prints what every round took, then the ratios."""
    stores = {"answers": "null", **{name: f"http://{LOCAL}:{port}" for name, port in ports.items()}}
    spent: dict[str, list[Spent]] = {name: [] for name in stores}
    for number in range(rounds):
        for name, uri in stores.items():
            spent[name].append(train(data, folder / name / str(number), uri, overrides))
        last = ", ".join(f"{name} {one[-1].epochs:.2f} s ({one[-1].processor:.1f} s)" for name, one in spent.items())
        print(f"round {number + 1}, load {os.getloadavg()[0]:.1f}, epochs (processor): {last}", flush=True)
    for name in ports:
        pairs = list(zip(spent[name], spent["answers"], strict=True))
        by_clock = more([one.epochs / base.epochs for one, base in pairs])
        by_processor = more([one.processor / base.processor for one, base in pairs])
        print(f"{name}: epochs {by_clock}; processor time of the command {by_processor}", flush=True)


def more(ratios: list[float]) -> str:
    """Word ratios as a percentage that is added."""
    middle = 100 * (statistics.median(ratios) - 1)
    return f"{middle:+.1f} % (median of {len(ratios)}, {min(ratios):.3f} to {max(ratios):.3f})"


def train(data: str, home: Path, uri: str, overrides: list[str]) -> Spent:
    """Train once."""
    command = [sys.executable, "-m", "xray_pneumonia.cli", "train", f"data.root={data}", f"home={home}"]
    command += [f"data.cache_dir={home.parent.parent / 'cache'}", f"tracking.uri={uri}", "evaluation=quick"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*command, *overrides], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stderr)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    run_id = done.stdout.splitlines()[-1].split()[0].removeprefix("run_id=")
    return Spent(sum(epoch_seconds(home, run_id)[1:]), processor)


def epoch_seconds(home: Path, run_id: str) -> list[float]:
    """Read what each epoch of a run took, from its spool if it is still there, else from the store of its home."""
    if kept := spools(home):
        return [value for key, value, _ in metrics(kept[0]) if key == "time/epoch_seconds"]
    from mlflow import MlflowClient

    history = MlflowClient(f"sqlite:///{home}/mlflow.db").get_metric_history(run_id, "time/epoch_seconds")
    return [metric.value for metric in history]


def metrics(spool: Spool) -> Iterator[tuple[str, float, int]]:
    """List the metrics that a spool holds: name, value, step."""
    for entry in spool.entries():
        if entry.what == "metrics":
            yield from ((key, value, step) for key, value, _, step in entry.value)


def deliver(name: str, uri: str, home: Path) -> None:
    """Send what a training kept, and compare what has arrived with it."""
    from mlflow import MlflowClient

    [kept] = spools(home)
    said = sorted((key, step) for key, _, step in metrics(kept))
    [synced] = sync(uri, home)
    if synced.problem or synced.mlflow_id is None or spools(home):
        sys.exit(f"{name}: not everything could be sent: {synced}")
    client = MlflowClient(uri)
    arrived = [
        (key, metric.step)
        for key in {key for key, _ in said}
        for metric in client.get_metric_history(synced.mlflow_id, key)
    ]
    if sorted(arrived) != said:
        missing, doubled = len({*said} - {*arrived}), len(arrived) - len({*arrived})
        sys.exit(f"{name}: of {len(said)} values {missing} are missing and {doubled} stand there twice")
    print(f"{name}, {home.name}: sent afterwards: {synced.status}, {len(said)} values, each there once", flush=True)


@contextmanager
def server(port: int, folder: Path) -> Iterator[None]:
    """Run an MLflow server on this port."""
    folder.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--host", LOCAL, "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    world = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=world)
    try:
        for _ in range(600):
            if answers(port):
                break
            time.sleep(0.2)
        else:
            sys.exit((folder / "server.log").read_text())
        yield
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def answers(port: int) -> bool:
    """Tell whether a server is there."""
    try:
        with urllib.request.urlopen(f"http://{LOCAL}:{port}/health", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    main()
