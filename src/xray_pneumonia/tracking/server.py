"""Serves MLflow's pages of a store on this machine alone, and knows the addresses of runs there."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, urlsplit
from urllib.request import urlopen

from xray_pneumonia.errors import InputError
from xray_pneumonia.masking import masked
from xray_pneumonia.tracking.leaderboard import VIEW
from xray_pneumonia.tracking.locations import sqlite_uri
from xray_pneumonia.tracking.process import alive, identity
from xray_pneumonia.tracking.store import Store

HOST = "127.0.0.1"
PORTS = range(5000, 5020)  # MLflow's own and the next, so that a bookmark may go on working
STARTING = 90.0  # seconds that the server may take to answer
RECORD, LOG = "ui.json", "ui.log"  # in the home: the server that runs, and what it printed
SHOWN = "workflowType=machine_learning"  # else the pages are those for language models


def leaderboard_path(store: Store) -> str:
    """Write the path of the view Leaderboard of an experiment."""
    return f"/#/experiments/{store.experiment_id}/runs?viewStateShareKey={VIEW}&{SHOWN}"


def runs_path(store: Store, run_ids: Sequence[str]) -> str:
    """Write the path of the page of one run, or of the comparison of several."""
    if len(run_ids) == 1:
        return f"/#/experiments/{store.experiment_id}/runs/{run_ids[0]}?{SHOWN}"
    ids, experiments = (quote(json.dumps(some, separators=(",", ":"))) for some in (run_ids, [store.experiment_id]))
    return f"/#/compare-runs?runs={ids}&experiments={experiments}&{SHOWN}"


def artifact_path(store: Store, run_id: str, name: str) -> str:
    """Write the path of the page of a file of a run, from any other page of the server."""
    return f"#/experiments/{store.experiment_id}/runs/{run_id}/artifacts/{name}?{SHOWN}"


def see_it(store: Store, run_ids: Sequence[str], *, last: bool = True) -> str:
    """Tell where runs can be seen: their address where a server runs, else the command that starts one.

    `last`: they are those that `xray ui` shows by itself.
    """
    base = address(store)
    if base and store.experiment_id:
        return base + runs_path(store, run_ids)
    local = store.uri in {sqlite_uri(store.home / "mlflow.db"), os.environ.get("MLFLOW_TRACKING_URI")}
    words = [
        *([] if store.home == Path("mlruns").resolve() else [f"home={store.home}"]),
        *([] if local else [f"tracking.uri={masked(store.uri)}"]),
        *([] if last else [f"run_ids=[{','.join(run_id[:8] for run_id in run_ids)}]"]),
    ]
    return shlex.join(["xray", "ui", *words])


def link(store: Store, run_ids: Sequence[str]) -> str:
    """Write the address of runs on the server that runs, or on the one that `xray ui` would start now."""
    return (address(store) or f"http://{HOST}:{_free_port(None)}") + runs_path(store, run_ids)


def address(store: Store) -> str | None:
    """Return the address of the server of a store: the store itself, or the one that `xray ui` started."""
    if urlsplit(store.uri).scheme in {"http", "https"}:
        return masked(store.uri).rstrip("/")
    with suppress(OSError, ValueError, KeyError):
        record = json.loads((store.home / RECORD).read_text(encoding="utf-8"))
        if record["uri"] == masked(store.uri) and alive(record, silent=lambda: 0.0, stale_after=0.0):
            return f"http://{HOST}:{int(record['port'])}"
    return None


@contextmanager
def serve(store: Store, port: int | None) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Start MLflow's server for a store and end it with the block.

    Args:
        store: in a database; its URI may hold a password, which no other process gets to see.
        port: null takes a free one.

    Yields:
        Its address, once it answers, and its process.

    Raises:
        InputError: the port is in use, or the server does not start.
    """
    chosen = _free_port(port)
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(chosen), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": store.uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_HOST", "MLFLOW_PORT"):  # of this command's caller
        environment.pop(name, None)
    with (store.home / LOG).open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=store.home, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait(process, chosen, store.home / LOG)
        record = {**identity(process.pid), "port": chosen, "uri": masked(store.uri)}
        (store.home / RECORD).write_text(json.dumps(record), encoding="utf-8")
        yield f"http://{HOST}:{chosen}", process
    finally:
        (store.home / RECORD).unlink(missing_ok=True)
        _end(process)


def _free_port(asked: int | None) -> int:
    for port in (*PORTS, 0) if asked is None else (asked,):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that ended a moment ago holds it
            probe.bind((HOST, port))
            return int(probe.getsockname()[1])
    raise InputError(f"port={asked}: is in use or not allowed; leave port=null, which takes a free one")


def _wait(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    end = time.monotonic() + STARTING
    while process.poll() is None and time.monotonic() < end:
        with suppress(OSError), urlopen(f"http://{HOST}:{port}/health", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise InputError(
        f"the MLflow server does not start: {masked(lines[-1]) if lines else 'it says nothing'}; see {log}"
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the server and the processes that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
            return
