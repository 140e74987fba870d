"""Several processes, one study, on PostgreSQL; the server is restarted in the middle."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
TINY = [
    "model=resnet",
    "model.width=4",
    "model.stages=2",
    "model.depth=1",
    "data=synthetic",
    "data.synthetic_patients=80",
    "data.image_size=32",
    "trainer.max_epochs=1",
    "trainer.threads=1",
    "tracking.system_metrics=false",
]


class Server:
    """A cluster of its own in a temporary folder, run as postgres, which refuses to be root."""

    def __init__(self, folder):
        self.folder, self._bin = folder, BINARIES[-1].parent
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._run("initdb", "-D", str(folder), "-A", "trust", "-U", "postgres")
        self.control("start")
        for name in ("mlflow", "sweeps"):
            self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", name)

    def control(self, *action):
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        self._run("pg_ctl", "-D", str(self.folder), "-w", "-l", str(self.folder / "log"), "-o", options, *action)

    def url(self, name):
        return f"postgresql+psycopg2://postgres@127.0.0.1:{self.port}/{name}"

    def _run(self, program, *arguments):
        command = [str(self._bin / program), *arguments]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        subprocess.run(command, check=True, capture_output=True, cwd="/")


@pytest.fixture
def server(tmp_path_factory):
    if not BINARIES:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    pytest.importorskip("psycopg2")
    folder = Path("/tmp") / f"xray-postgres-{os.getpid()}-{time.monotonic_ns()}"  # pytest's own are root's alone
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    made = Server(folder)
    yield made
    made.control("-m", "immediate", "stop")
    shutil.rmtree(folder)


def watch_until(url, process, *, complete):
    """Wait for the first completed trials; returns the storage."""
    storage = None
    end = time.monotonic() + 600
    while time.monotonic() < end and process.poll() is None:
        time.sleep(2)
        try:
            storage = storage or optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
            trials = optuna.load_study(study_name="pg", storage=storage).trials
        except (KeyError, optuna.exceptions.StorageInternalError):
            continue
        if sum(trial.state.name == "COMPLETE" for trial in trials) >= complete:
            return storage
    raise AssertionError("no trial was completed")


@pytest.mark.long
def test_eight_workers_survive_a_restart_of_the_server(server, tmp_path):
    command = [
        *(sys.executable, "-m", "xray_pneumonia.cli", "train", "-m", *TINY, f"home={tmp_path}"),
        *("optimizer.lr=tag(log,interval(1e-4,1e-2))", "sweep.n_trials=16", "sweep.name=pg", "workers=8"),
        *(f"sweep.storage={server.url('sweeps')}", f"tracking.uri={server.url('mlflow')}", "sweep.max_failures=null"),
    ]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    try:
        storage = watch_until(server.url("sweeps"), process, complete=2)
        server.control("-m", "immediate", "restart")
        code = process.wait(timeout=1500)
    finally:
        process.kill()
        process.wait()
    assert code == 0, (tmp_path / "log").read_text()

    trials = optuna.load_study(study_name="pg", storage=storage).trials
    states = Counter(trial.state.name for trial in trials)
    assert states["COMPLETE"] == 16, states
    assert states["RUNNING"] == 0
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert len({trial.user_attrs["worker"]["pid"] for trial in trials if trial.state.name == "COMPLETE"}) > 1
    client = MlflowClient(server.url("mlflow"))
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(ids, max_results=1000)
    done = {str(trial.number) for trial in trials if trial.state.name == "COMPLETE"}
    trained = [run for run in runs if run.data.tags["verb"] == "train"]
    finished = [run.data.tags["sweep.trial"] for run in trained if run.info.status == "FINISHED"]
    assert set(finished) >= done
    assert not [run for run in runs if run.info.status == "RUNNING"]
    storage.engine.dispose()
