"""Fixtures of the fault tests: a training as a process of its own, which reports each step."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

BUSY = ["model.dropout=0.3", "data.batch_size=8", "trainer.max_epochs=3", "trainer.patience=null"]
# One warm process that imports everything once; each training is forked from it.
sys.path.insert(0, str(Path(__file__).parent))
WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(["driver"])


class Training:
    """A training in a process of its own, which reports each step."""

    def __init__(self, arguments, folder):
        from driver import run

        self.log = folder / f"messages{time.time_ns()}.txt"
        self._listen, tell = WARM.Pipe(duplex=False)
        self._process = WARM.Process(target=run, args=(arguments, folder, str(self.log), tell))
        self._process.start()
        tell.close()
        self.words = []

    def until(self, word, count=1):
        """Wait until a word was reported so often."""
        while self.words.count(word) < count:
            try:
                self.words.append(self._listen.recv())
            except EOFError:
                pytest.fail(f"it ended before {word} {count}: {self.err}")
        return self

    def signal(self, number):
        os.kill(self._process.pid, number)
        return self

    def end(self, seconds=600):
        """Wait; returns the exit code."""
        with contextlib.suppress(EOFError):
            while self._listen.poll(seconds):
                self.words.append(self._listen.recv())
        self._process.join(seconds)
        return self._process.exitcode

    @property
    def err(self):
        return self.log.read_text()


class Command:
    """A training started by a command that changes its environment."""

    def __init__(self, around, arguments, folder, **environment):
        command = [*around, sys.executable, "-m", "xray_pneumonia.cli", *arguments]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=variables, check=False)
        self.code, self.err = done.returncode, done.stderr


class Place:
    """One experiment in the shared store."""

    def __init__(self, folder, home, asked, name):
        self.folder, self.home, self.asked, self.name = folder, home, asked, name

    @property
    def client(self):
        return MlflowClient(f"sqlite:///{self.home}/mlflow.db")

    @property
    def runs(self):
        return self.client.search_runs([self.client.get_experiment_by_name(self.name).experiment_id])

    @property
    def run(self):
        [run] = self.runs
        return run

    @property
    def checkpoints(self):
        return Path(self.run.info.artifact_uri.removeprefix("file://")) / "checkpoints"

    def _arguments(self, *overrides):
        return ["train", *self.asked, f"tracking.experiment_name={self.name}", *overrides]

    def train(self, *overrides):
        return Training(self._arguments(*overrides), self.folder)

    def train_inside(self, *around, overrides=(), **environment):
        return Command(around, self._arguments(*overrides), self.folder, **environment)

    def resume(self):
        return self.train(f"resume={self.run.info.run_id}")

    def steps(self, metric="val/loss"):
        return [entry.step for entry in self.client.get_metric_history(self.run.info.run_id, metric)]


@pytest.fixture
def place(tmp_path, tiny, home, request):
    name = f"{request.node.name[:40]}_{time.time_ns()}".replace("[", "_").replace("]", "").replace("/", "_")
    return Place(tmp_path, home, [*tiny, *BUSY], name)


@pytest.fixture(scope="session")
def within() -> Callable[[float], AbstractContextManager[None]]:
    """Require that a block takes no longer, in seconds."""
    return _within


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    spent = time.monotonic() - start
    assert spent < seconds, f"took {spent:.1f} s"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all of them `long`: they start and kill processes for minutes."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.long)
