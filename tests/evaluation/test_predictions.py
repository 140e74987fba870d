"""The predictions' table, figures and pages from it."""

import numpy as np
import pandas as pd
import pytest

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.evaluation.report import figures
from xray_pneumonia.evaluation.report.build import render


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    label = np.r_[np.zeros(30, int), np.ones(50, int)]
    records = pd.DataFrame(
        {
            "id": [f"train/x{i}.jpeg" for i in range(80)],
            "patient": [f"p{i // 2}" for i in range(80)],
            "subtype": np.where(label, "virus", "normal"),
            "label": label,
        }
    )
    return predictions.tabulate(records, np.arange(80), rng.normal(label * 3 - 1.5, 2))


def test_columns_and_probability(table):
    assert tuple(table.columns) == predictions.COLUMNS
    np.testing.assert_allclose(table["probability"], 1 / (1 + np.exp(-table["logit"])))


def test_the_csv_comes_back_and_no_cell_is_a_formula(table, tmp_path):
    table.loc[0, "id"] = "=cmd()|'/c calc'!A0"
    table.loc[1, "patient"] = "+1"
    table.loc[2, "id"] = 'new\nline "quoted", ünïcode'
    predictions.write(table, tmp_path / "val.csv")
    back = pd.read_csv(tmp_path / "val.csv")
    assert back["id"][0].startswith("'=")
    assert back["patient"][1] == "'+1"
    assert back["id"][2] == table["id"][2]
    np.testing.assert_allclose(back["logit"], table["logit"], rtol=1e-8)


def text_of(figure):
    return " ".join(text.get_text() for axes in figure.axes for text in [axes.title, axes._left_title, *axes.texts])


@pytest.mark.parametrize("change", [lambda table: pd.concat([table, table[:1]]), lambda table: table.assign(label=9)])
def test_a_table_with_an_image_twice_or_a_label_that_is_none_is_refused(table, tmp_path, change):
    predictions.write(change(table), tmp_path / "val.csv")
    with pytest.raises(InputError, match=r"val.csv: is no table of predictions .*: an image stands there twice, or"):
        predictions.read(tmp_path / "val.csv")


def test_the_confusion_matrix_shows_the_counts(table):
    called = table["probability"] >= 0.5
    shown = text_of(figures.confusion_matrix(table, threshold=0.5))
    for truth in (0, 1):
        for call in (0, 1):
            assert f"{((table['label'] == truth) & (called == call)).sum()}\n" in shown
    assert "80 images of 40 patients" in shown


def test_curves_say_what_they_rest_on(table):
    figure = figures.roc_and_precision_recall(table, threshold=0.5)
    assert "AUROC 0." in text_of(figure)
    assert "80 images of 40 patients" in figure._supxlabel.get_text()


def test_the_worst_mistakes_come_first(table):
    images = np.zeros((80, 8, 8), np.uint8)
    shown = [axes.get_title() for axes in figures.worst_mistakes(table, images, threshold=0.5).axes]
    wrong = table[(table["probability"] >= 0.5) != (table["label"] == 1)]
    worst = wrong.loc[(wrong["probability"] - wrong["label"]).abs().idxmax()]
    assert worst["patient"] in shown[0].split()
    perfect = table.assign(probability=table["label"].astype(float))
    assert "no mistakes" in figures.worst_mistakes(perfect, images, threshold=0.5).texts[0].get_text()


def test_a_figure_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    place = tmp_path / "curves.png"
    place.write_bytes(b"before")
    monkeypatch.setattr("xray_pneumonia.whole_files.os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        figures.save(figures.learning_curves({}, best_epoch=1), place)
    assert [place.read_bytes() for place in tmp_path.iterdir()] == [b"before"]


@pytest.mark.parametrize("history", [{}, {"train/loss": [(1, 0.5)], "val/loss": [(1, 0.4), (2, 0.3)]}])
def test_learning_curves_of_any_length(history, tmp_path):
    figures.save(figures.learning_curves(history, best_epoch=1), tmp_path / "figures" / "curves.png")
    assert (tmp_path / "figures" / "curves.png").stat().st_size > 5000


def test_pages_are_self_contained_and_escape_what_they_show(table):
    page = render(
        "explore.html",
        figures={"Confusion": figures.confusion_matrix(table, threshold=0.5)},
        root="<script>alert(1)</script>",
        records=1,
        patients=1,
        fingerprint="f",
        findings=[],
        shortcuts={"bytes": 0.9},
        sizes=[],
    )
    assert "<script" not in page
    assert "http" not in page
    assert 'src="data:image/png;base64,' in page
