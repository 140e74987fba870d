"""Doubtful labels from the command line: two folds with flipped labels, the review, both states in an evaluation."""

import csv
import json
from types import SimpleNamespace

import pandas as pd
import pytest

from xray_pneumonia.errors import InputError
from xray_pneumonia.tracking import stored_runs
from xray_pneumonia.tracking.store import TrackingSettings, open_existing
from xray_pneumonia.workflows.reviewed_films import _require_same


@pytest.fixture
def flipped(xrays, tmp_path):
    """Some generated films under the other label, as corrections."""
    films = sorted(xrays.glob("*/*/*.jpeg"))[::12]
    other = {"NORMAL": "PNEUMONIA", "PNEUMONIA": "NORMAL"}
    rows = [f"{film.relative_to(xrays)},{other[film.parent.name]}" for film in films]
    (tmp_path / "flips.csv").write_text("\n".join(["path,label", *rows]))
    return {row.partition(",")[0] for row in rows}


def test_flipped_labels_from_training_to_review_and_evaluation(xray, tiny, home, flipped, tmp_path):
    place = [f"home={home}", "tracking.experiment_name=review"]
    for fold in (0, 1):
        overrides = ["data.folds=2", f"data.fold={fold}", "data.corrections=flips.csv"]
        outcome = xray("train", *tiny, *place[1:], *overrides)
        assert outcome.code == 0, outcome.err
        assert "labels as published: " in outcome.err
    run_id = outcome.run_id

    outcome = xray("review", *place, "output=out", "shown=3", "neighbours=2")
    assert outcome.code == 0, outcome.err
    rows = list(csv.DictReader((tmp_path / "out/review.csv").open()))
    assert list(rows[0]) == ["path", "sha256", "label", "suggested_label", "doubt", "predictions"]
    assert {row["predictions"] for row in rows} == {"1"}
    changed = len([path for path in flipped if not path.startswith("test/")])
    assert f"Of the {changed} labels that differ from those published" in " ".join(outcome.out.split())
    doubted = sum(row["label"] != row["suggested_label"] for row in rows)
    assert outcome.out.splitlines()[-1].endswith(f"films={len(rows)} doubted={doubted}")
    page = (tmp_path / "out/review.html").read_text()
    assert not any(path.stat().st_mode & 0o077 for path in (tmp_path / "out", *(tmp_path / "out").iterdir()))
    assert page.count("<section>") == 3
    assert page.count("nearest by features of run") == 3
    assert page.count("data:image/jpeg") == 9
    names = {"uri": None, "run_name": None, "system_metrics": False, "required": False}
    store = open_existing(TrackingSettings(**names, experiment_name="review"), home=home)
    [run] = stored_runs.find(store, {"verb": "review"}, status="FINISHED")
    assert run.artifact("review/review.html").read_text() == page
    assert run.artifact("review/review.csv").read_bytes() == (tmp_path / "out/review.csv").read_bytes()
    hits = sum(row["label"] != row["suggested_label"] and row["path"] in flipped for row in rows)
    found = {"films": len(rows), "doubted": doubted, "changed": changed, "changed_doubted": hits}
    found |= {"precision": hits / doubted, "recall": hits / changed}
    assert {name: run.metrics[f"review/{name}"] for name in found} == pytest.approx(found)

    (tmp_path / "flips.csv").write_text("path,label\n")  # the run's own copy counts
    outcome = xray("evaluate", f"run_id={run_id}", "split=test", *place, "evaluation=quick", "evaluation.report=true")
    assert outcome.code == 0, outcome.err
    said = f"On this split {len(flipped) - changed} of "
    assert said in " ".join(outcome.out.split())
    report = next(home.glob("**/evaluation/test/report.html"))
    assert said in report.read_text()
    assert not report.stat().st_mode & 0o077
    numbers = json.loads((report.parent / "evaluation.json").read_text())
    assert numbers["as_published"]["auroc"] != numbers["at_operating_point"]["auroc"]["value"]
    store = open_existing(TrackingSettings(**names, experiment_name="ledger"), home=home)
    openings = store.client.search_runs([store.experiment_id], f"tags.`ledger.runs` = '{run_id}'")
    assert "as corrected by corrections.csv" in openings[0].data.tags["ledger.corrections"]


def test_runs_of_another_state_of_the_labels_are_refused(tmp_path):
    (tmp_path / "records.csv").write_text("id,sha256\na,1\nb,2\n")
    run = SimpleNamespace(run_id="second", artifact=lambda name: tmp_path / name)
    table = pd.DataFrame({"id": ["a", "b"], "label": [0, 1]})
    same = pd.DataFrame({"label": [0, 1], "sha256": ["1", "2"]}, index=["a", "b"])
    _require_same(run, table, same, first="first")
    for other in (same.assign(label=[1, 1]), same.assign(sha256=["1", "3"]), same.loc[["a"]]):
        with pytest.raises(InputError, match="run_id=second: 1 of the 2 films it was validated on have other labels"):
            _require_same(run, table, other, first="first")
