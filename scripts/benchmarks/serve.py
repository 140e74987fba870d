"""Measures `xray serve` under load, and MLflow's server with the same model; usage: serve.py FILMS [--requests N].

Eight clients send the films of a folder, as files; for each server the answers a second, the median and the 99th
percentile of the waiting time, errors, and how much its memory grew between the first hundred answers and the last.
"""

import argparse
import base64
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil

import xray_pneumonia

CLIENTS = 8
MODEL = Path(xray_pneumonia.__file__).parent / "weights" / "final"


@contextmanager
def running(command: list[str], url: str) -> Iterator[psutil.Process]:
    """Start a server and wait until it answers; prints how long that took."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).read()
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"{command[0]} ended with {process.returncode}") from None
                time.sleep(0.1)
        print(f"  answers {time.perf_counter() - start:.1f} s after its start")
        yield psutil.Process(process.pid)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def memory(process: psutil.Process) -> float:
    """Sum the resident memory of a process and its children, in MiB."""
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / 2**20


def load(process: psutil.Process, films: list[bytes], requests: int, send: Callable[[bytes], object]) -> None:
    """Let the clients send so many films, and print what it was like."""
    numbers, waits, errors, sizes = itertools.count(), [], [], []
    lock = threading.Lock()

    def client() -> None:
        while (number := next(numbers)) < requests:
            start = time.perf_counter()
            try:
                send(films[number % len(films)])
            except (OSError, ValueError) as error:
                errors.append(error)
            with lock:
                waits.append(time.perf_counter() - start)
                if len(waits) in {100, requests}:
                    sizes.append(memory(process))

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    print(
        f"  {requests / seconds:.0f} films/s, median {1000 * np.median(waits):.0f} ms, "
        f"99 % within {1000 * np.quantile(waits, 0.99):.0f} ms, {len(errors)} errors, "
        f"memory {sizes[0]:.0f} MiB, later {sizes[-1] - sizes[0]:+.0f} MiB"
    )


def main() -> None:
    """Load both servers with the same films."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("films", type=Path)
    parser.add_argument("--requests", type=int, default=1000)
    given = parser.parse_args()
    films = [path.read_bytes() for path in sorted(given.films.rglob("*.*")) if path.is_file()][:200]

    def post(url: str, body: bytes, kind: str) -> object:
        request = urllib.request.Request(url, body, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def to_mlflow(film: bytes) -> object:
        body = {"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(film).decode()]]}}
        return post("http://127.0.0.1:8702/invocations", json.dumps(body).encode(), "application/json")

    with TemporaryDirectory() as folder:
        print(f"xray serve, {CLIENTS} clients")
        command = [sys.executable, "-m", "xray_pneumonia.cli", "serve", "port=8701", f"home={folder}"]
        with running(command, "http://127.0.0.1:8701/health") as process:
            one = "http://127.0.0.1:8701/v1/predict"
            load(process, films, given.requests, lambda film: post(one, film, "application/octet-stream"))
        print(f"mlflow models serve, {CLIENTS} clients")
        bundle = Path(folder) / "model"
        save = (
            "import mlflow.pyfunc as p, sys;"
            "p.save_model(sys.argv[1], loader_module='xray_pneumonia.workflows.pyfunc', data_path=sys.argv[2])"
        )
        subprocess.run([sys.executable, "-c", save, bundle, MODEL], check=True, capture_output=True)
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(bundle), "--env-manager", "local"]
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with running([*command, "--port", "8702"], "http://127.0.0.1:8702/ping") as process:
            load(process, films, given.requests, to_mlflow)


if __name__ == "__main__":
    main()
