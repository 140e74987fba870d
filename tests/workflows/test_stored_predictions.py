"""Which runs are the other folds of a config, whose predictions the margin is fitted on."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit

from xray_pneumonia.data.records import fingerprint
from xray_pneumonia.workflows import stored_predictions

RECORDS = pd.DataFrame(
    {"id": [f"f{i}" for i in range(12)], "sha256": [f"{i:x}" for i in range(12)], "label": [0, 1] * 6, "split": "train"}
)
RECORDS.loc[10:, "split"] = "test"


def cut(fold, records=RECORDS):
    """The records as the run of a fold has them: ten films in folds of two."""
    own = np.arange(len(records)) // 2 == fold
    return records.assign(split=records["split"].mask(own, "val"))


def fold_run(fold, *, records=RECORDS, point=0.5, state="complete", **params):
    records = cut(fold, records)
    table = records[records["split"] == "val"].assign(patient=records["id"], logit=0.0, probability=[0.2, 1.0])
    return SimpleNamespace(
        run_id=f"run {fold}",
        state=state,
        params={"seed": "1", "data.folds": "5", "data.fold": str(fold), "home": f"h{fold}"} | params,
        tags={"records_fingerprint": fingerprint(records)},
        metrics={"operating/threshold": point},
        table=table,
    )


@pytest.fixture
def siblings(monkeypatch):
    """Find the other folds of fold 0 among some runs, oldest first."""
    monkeypatch.setattr(stored_predictions, "validation_predictions", lambda run: run.table)

    def find(runs):
        monkeypatch.setattr(stored_predictions, "search", lambda *_: runs)
        return stored_predictions.read_siblings(None, fold_run(0).params, cut(0))

    return find


def test_all_other_folds_are_read_from_their_own_operating_points_the_newest_of_each(siblings):
    runs = [fold_run(fold, point=0.3 if fold == 2 else 0.5) for fold in (1, 1, 2, 3, 4, 0)]
    runs[0].run_id = "older"
    found = siblings(runs)
    assert found.siblings
    assert sorted(found.table["id"]) == [f"f{i}" for i in range(2, 10)]
    assert set(found.table["net"]) == {f"run {fold}" for fold in (1, 2, 3, 4)}
    by = found.table.set_index("id")["distance"]
    assert by["f2"] == pytest.approx(logit(0.2))
    assert by["f4"] == pytest.approx(logit(0.2) - logit(0.3))
    assert np.isfinite(by).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": "2"},
        {"model.width": "8"},
        {"state": "pruned"},
        {"records": RECORDS.assign(label=1 - RECORDS["label"])},
        {"records": RECORDS.assign(sha256="0")},
        {"records": RECORDS.iloc[:-1]},
        None,
    ],
)
def test_another_config_other_films_or_labels_and_a_missing_fold_are_no_set(siblings, wrong):
    last = [] if wrong is None else [fold_run(4, **wrong)]
    assert siblings([fold_run(fold) for fold in (1, 2, 3)] + last) is None


@pytest.mark.parametrize(("verb", "folds"), [("adapt", "5"), ("train", "None")])
def test_no_other_folds_are_looked_for_where_there_are_none(verb, folds):
    run = SimpleNamespace(params={"data.folds": folds, "data.fold": "0"}, tags={"verb": verb})
    assert stored_predictions.find_siblings(run) is None
