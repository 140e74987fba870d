"""Cuts by patient."""

import numpy as np
import pandas as pd
import pytest

from xray_pneumonia.data.splits import cut, leakage_groups, require_disjoint
from xray_pneumonia.errors import InputError


def records(count=400, seed=0):
    rng = np.random.default_rng(seed)
    patients = rng.integers(0, count // 2, count)
    return pd.DataFrame({"patient": patients.astype(str), "subtype": np.array(["normal", "virus"])[patients % 2]})


@pytest.mark.parametrize("shares", [[0.85, 0.15], [0.2] * 5, [1 / 3] * 3])
@pytest.mark.parametrize("seed", range(5))
def test_whole_patients_in_fair_shares_of_every_stratum(shares, seed):
    table = records(seed=seed)
    part = cut(leakage_groups(table, []), table["subtype"], shares, seed=seed)
    assert table["patient"].groupby(table["patient"]).transform("size").sum() > 0
    assert pd.Series(part).groupby(table["patient"]).nunique().max() == 1
    for _, rows in table.groupby("subtype"):
        got = np.bincount(part[rows.index], minlength=len(shares)) / len(rows)
        np.testing.assert_allclose(got, shares, atol=0.03)


def test_seeds_decide_and_nothing_else():
    table = records()
    groups = leakage_groups(table, [])
    first = cut(groups, table["subtype"], [0.85, 0.15], seed=1)
    np.testing.assert_array_equal(first, cut(groups, table["subtype"], [0.85, 0.15], seed=1))
    assert (first != cut(groups, table["subtype"], [0.85, 0.15], seed=2)).any()


def test_twins_join_their_patients():
    table = pd.DataFrame({"patient": ["a", "a", "b", "c", "c"]})
    groups = leakage_groups(table, [(1, 2)])
    assert groups[0] == groups[1] == groups[2]
    assert groups[3] == groups[4] != groups[0]


def test_a_straddling_patient_raises():
    groups = np.array([0, 0, 1])
    require_disjoint(groups, pd.Series(["train", "train", "val"]))
    with pytest.raises(InputError, match="1 patients lie in two splits"):
        require_disjoint(groups, pd.Series(["train", "val", "val"]))
