"""What the sweep tests share: overrides of a trial that takes a second, the command, and what a sweep left behind."""

import sys
import weakref
from collections import Counter
from dataclasses import dataclass

import optuna
import pytest
from mlflow import MlflowClient


@dataclass(frozen=True)
class Records:
    """What a sweep wrote to its two databases."""

    sweeps: str
    mlflow: str

    def study(self, name):
        storage = optuna.storages.RDBStorage(self.sweeps)
        weakref.finalize(storage, storage.engine.dispose)
        return optuna.load_study(study_name=name, storage=storage)

    def trials(self, name):
        return self.study(name).trials

    def runs(self, *verbs):
        """The runs of these verbs, or all, oldest first."""
        client = MlflowClient(self.mlflow)
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        found = client.search_runs(ids, order_by=["start_time ASC"], max_results=1000)
        return [run for run in found if not verbs or run.data.tags["verb"] in verbs]

    def require_accounted(self, name, n_trials, *, ends=frozenset({"KILLED"})):
        """Nothing lost, nothing doubled, every status true; runs of failed trials ended as `ends` says."""
        trials = self.trials(name)
        states = Counter(trial.state.name for trial in trials)
        assert states["COMPLETE"] + states["PRUNED"] == n_trials, states
        assert states["RUNNING"] == 0, states
        assert [trial.number for trial in trials] == list(range(len(trials)))
        [parent] = self.runs("sweep")
        assert parent.info.status == "FINISHED"
        runs = self.runs("train", "trial")
        finished = Counter(run.data.tags["sweep.trial"] for run in runs if run.info.status == "FINISHED")
        done = {str(trial.number) for trial in trials if trial.state.name in {"COMPLETE", "PRUNED"}}
        assert set(finished) == done
        assert set(finished.values()) == {1}
        assert {run.info.status for run in runs} <= {"FINISHED", *ends}
        assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in runs)
        failed = {str(trial.number) for trial in trials if trial.state.name == "FAIL"}
        assert {run.data.tags["sweep.trial"] for run in runs if run.info.status in ends} <= failed


@pytest.fixture
def records(tmp_path):
    """What a sweep in the default home of `tmp_path` wrote."""
    return Records(f"sqlite:///{tmp_path}/mlruns/sweeps.db", f"sqlite:///{tmp_path}/mlruns/mlflow.db")


@pytest.fixture
def small(xrays):
    """Overrides of a trial that takes a second."""
    return [
        *("model=resnet", "model.width=4", "model.stages=2", "model.depth=1"),
        *(f"data.root={xrays}", "data.image_size=32", "evaluation=quick"),
        *("trainer.max_epochs=1", "trainer.threads=1", "tracking.system_metrics=false"),
    ]


@pytest.fixture
def command(small, tmp_path, monkeypatch):
    """The sweep as a process of its own, in an empty folder; to be completed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return [sys.executable, "-m", "xray_pneumonia.cli", "train", "-m", *small]
