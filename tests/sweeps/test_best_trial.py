"""The best trial: of how many, and what is left of its value when it is corrected for the choice."""

from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import pytest

from xray_pneumonia.evaluation import predictions
from xray_pneumonia.evaluation.metrics import table_metrics
from xray_pneumonia.sweeps import best_trial, catalogue

PLAN = SimpleNamespace(
    objectives={"val/accuracy": "max"}, maximize=True, name="sweep", settings=SimpleNamespace(seed=0)
)


def trial_run(number, folder):
    """A run with the predictions of one of many equally good trials."""
    rng = np.random.default_rng(number)
    label = np.arange(200) % 2
    logit = 2 * label - 1 + rng.normal(0, 1, 200)
    frame = {
        "id": np.arange(200).astype(str),
        "patient": (np.arange(200) // 4).astype(str),
        "subtype": "",
        "label": label,
    }
    table = pd.DataFrame(frame | {"logit": logit, "probability": 0.9})  # calibrated; trials report at a raw 0.5
    path = folder / f"{number}.csv"
    predictions.write(table, path)
    accuracy = table_metrics(table.assign(probability=1 / (1 + np.exp(-logit))), threshold=0.5)["accuracy"]
    return accuracy, SimpleNamespace(tags={"sweep.trial": str(number)}, artifact=lambda *_, **__: path)


@pytest.fixture
def study(monkeypatch, tmp_path):
    made = optuna.create_study(direction="maximize")
    runs = []
    for number in range(12):
        accuracy, run = trial_run(number, tmp_path)
        made.add_trial(optuna.trial.create_trial(value=accuracy))
        runs.append(run)
    monkeypatch.setattr(best_trial.stored_runs, "find", lambda *_, **__: runs)
    return made, runs


def test_the_best_of_equal_trials_is_corrected(study):
    made, _ = study
    found = best_trial.correct_best(None, PLAN, made.trials)
    assert found.value == pytest.approx(made.best_value)
    assert found.corrected == pytest.approx(0.8413, abs=0.02)  # the truth, Phi(1)
    assert catalogue._best(made, ["val/accuracy"]) == (
        f"val/accuracy {made.best_value:.4f} (best of 12, flattered by the choice)"
    )
    made.set_user_attr(best_trial.CORRECTED, {"trials": 12, "value": found.corrected})
    assert best_trial.word_best(made) == f"best of 12, corrected for the choice {found.corrected:.4f}"
    made.add_trial(optuna.trial.create_trial(value=0.5))
    assert best_trial.word_best(made) == "best of 13, flattered by the choice"  # the correction was for fewer


def test_what_cannot_be_corrected_says_why(study):
    made, runs = study
    other = SimpleNamespace(objectives={"val/loss": "min"}, maximize=False)
    assert "val/loss cannot be computed from predictions" in str(best_trial.correct_best(None, other, made.trials))
    del runs[3]
    assert "trial 3 left no predictions" in str(best_trial.correct_best(None, PLAN, made.trials))
