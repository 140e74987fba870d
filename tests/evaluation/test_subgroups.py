import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from xray_pneumonia.evaluation.abstention import Band
from xray_pneumonia.evaluation.intervals import wilson
from xray_pneumonia.evaluation.subgroups import FEW, count_answered, subgroups


def table():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 60)
    subtype = np.where(label == 0, "normal", np.where(np.arange(120) % 3 == 0, "virus", "bacteria"))
    logit = rng.normal(np.where(subtype == "bacteria", 2, np.where(subtype == "virus", 0.5, -1)), 1)
    return pd.DataFrame(
        {
            "patient": np.arange(120) // 2,
            "label": label,
            "subtype": subtype,
            "logit": logit,
            "probability": 1 / (1 + np.exp(-logit)),
            "mode": np.where(np.arange(120) % 4 == 0, "RGB", "L"),
            "width": np.arange(120) + 100,
            "name": [f"n{i}" for i in range(120)],
        }
    )


def judged(columns):
    return subgroups(table(), columns=columns, threshold=0.5, replicates=100, seed=0)


def test_kinds_of_pneumonia_stand_against_all_normal_images():
    found = {one.value: one for one in judged(["subtype"])}
    assert set(found) == {"bacteria against normal", "virus against normal"}
    part = table().query("subtype in ['virus', 'normal']")
    assert found["virus against normal"].images == len(part)
    expected = roc_auc_score(part["label"], part["probability"])
    assert found["virus against normal"].metrics["auroc"].value == pytest.approx(expected, abs=1e-9)
    assert found["virus against normal"].metrics["sensitivity"].value == pytest.approx(
        part.query("label == 1")["probability"].ge(0.5).mean()
    )


def test_a_column_cuts_the_table_and_numbers_are_cut_in_quarters():
    found = judged(["mode", "width"])
    assert [one.value for one in found if one.column == "mode"] == ["L", "RGB"]
    assert sum(one.images for one in found if one.column == "width") == 120
    assert len([one for one in found if one.column == "width"]) == 4


def test_a_part_with_one_class_says_so():
    lowest = next(one for one in judged(["width"]))
    assert np.isnan(lowest.metrics["auroc"].value)
    assert not np.isnan(lowest.metrics["specificity"].value)


def test_parts_of_few_patients_are_marked():
    assert {one.value: one.few for one in judged(["mode"])} == {"L": False, "RGB": False}
    small = subgroups(table().head(76), columns=["mode"], threshold=0.5, replicates=100, seed=0)
    assert [(one.patients, one.few) for one in small] == [(38, False), (19, True)]


def test_names_make_no_subgroups():
    assert judged(["name"]) == []


def test_answers_of_a_part_are_those_that_margin_and_gate_let_through():
    films = table()
    films["gate_score"] = np.where(np.arange(120) % 10 == 0, 1.5, 0.5)
    rows = np.arange(120) % 3 > 0
    whole, part, small = count_answered(
        films, Band(0.4, 0.7), {"all": np.ones(120, bool), "part": rows, "small": np.arange(120) < 2 * FEW - 2}
    )
    given = rows & ((films["probability"] < 0.4) | (films["probability"] > 0.7)) & (films["gate_score"] <= 1)
    wrong = (films["probability"] > 0.7) != (films["label"] == 1)
    patients = films.loc[given, "patient"].nunique()
    assert (part.images, part.patients, part.stopped) == (80, 60, pytest.approx((films["gate_score"][rows] > 1).mean()))
    assert part.answered.value == pytest.approx(given.sum() / 80)
    assert (part.error.value, part.error.images, part.error.patients) == (wrong[given].mean(), given.sum(), patients)
    assert (part.error.low, part.error.high) == pytest.approx(wilson(wrong[given].mean() * patients, patients))
    assert (whole.few, part.few, small.few) == (False, False, True)
    [ungated] = count_answered(films.drop(columns="gate_score"), Band(0.5, 0.5), {"all": np.ones(120, bool)})
    assert np.isnan(ungated.stopped)
    assert ungated.answered.value == 1
