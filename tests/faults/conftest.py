"""What the faults share: a training as a process of its own, which says where it is."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

BUSY = [
    *("model.dropout=0.3", "data.batch_size=8", "trainer.max_epochs=3", "trainer.patience=null"),
    "trainer.checkpoint_steps=2",
]
# Runs the command with training and validation slowed down, and writes a word to standard output at each step.
DRIVER = """
import sys, time
from xray_pneumonia import cli
from xray_pneumonia.training.classifier import PneumoniaClassifier
from xray_pneumonia.workflows import train

def spoken(owner, name, word):
    plain = getattr(owner, name)
    def speaking(*arguments, **named):
        print(word, flush=True)
        time.sleep(0.05)
        return plain(*arguments, **named)
    setattr(owner, name, speaking)

spoken(PneumoniaClassifier, "training_step", "STEP")
spoken(PneumoniaClassifier, "validation_step", "CHECK")
spoken(train, "_classifier", "PREPARED")
spoken(train, "judge_validation", "JUDGE")
sys.exit(cli.main())
"""


class Training:
    """A training in a process of its own."""

    def __init__(self, command, folder, **environment):
        self.log = folder / "stderr.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )
        self.words = []

    def until(self, word, count=1):
        """Read on until a word has come so often."""
        while self.words.count(word) < count:
            line = self.process.stdout.readline()
            assert line, self.err
            self.words.append(line.strip())
        return self

    def signal(self, number):
        self.process.send_signal(number)
        return self

    def end(self, seconds=120):
        """Wait; returns the exit code."""
        out, _ = self.process.communicate(timeout=seconds)
        self.words += out.splitlines()
        return self.process.returncode

    @property
    def err(self):
        return self.log.read_text()


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

    def train(self, *overrides, around=(), inside=(sys.executable, "-c", DRIVER), **environment):
        arguments = ["train", *self.asked, f"tracking.experiment_name={self.name}", *overrides]
        return Training([*around, *inside, *arguments], self.folder, **environment)

    def resume(self, **options):
        return self.train(f"resume={self.run.info.run_id}", **options)

    def steps(self, metric="val/loss"):
        return [entry.step for entry in self.client.get_metric_history(self.run.info.run_id, metric)]


@pytest.fixture
def place(tmp_path, tiny, home, request):
    name = f"{request.node.name[:40]}_{time.time_ns()}".replace("[", "_").replace("]", "").replace("/", "_")
    return Place(tmp_path, home, [*tiny, *BUSY], name)
