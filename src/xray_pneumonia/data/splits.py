"""Split images by patient: stratified, seeded, and never a patient (or a near duplicate) on both sides."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from xray_pneumonia.errors import InputError

Groups = npt.NDArray[np.int64]


def leakage_groups(records: pd.DataFrame, twins: list[tuple[int, int]]) -> Groups:
    """Number the groups that must stay together: a patient's images, and images of the same X-ray.

    Args:
        records: N rows with a column `patient`; the index is 0..N-1.
        twins: pairs of rows that show the same X-ray.

    Returns:
        (N,) the group of each record.
    """
    patients = pd.factorize(records["patient"])[0]
    first = pd.Series(np.arange(len(records))).groupby(patients).transform("first").to_numpy()
    same = np.stack([np.arange(len(records)), first], axis=1)
    return _joined(np.concatenate([same, np.reshape(twins, (-1, 2))]), len(records))


def in_other_splits(split: pd.Series, twins: list[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Find the images, by their splits (N,), whose X-ray is in another split too; `twins` pairs rows that show one."""
    xrays = _joined(np.reshape(twins, (-1, 2)), len(split))
    return split.groupby(xrays).transform("nunique").to_numpy() > 1


def _joined(pairs: npt.NDArray[Any], size: int) -> Groups:
    """Number the groups (size,) of what pairs (P, 2) connect."""
    left, right = pairs.astype(int).T
    graph = coo_array((np.ones(len(left)), (left, right)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def cut(groups: Groups, strata: pd.Series, fractions: list[float], *, seed: int) -> Groups:
    """Deal whole groups into parts of the given fractions, stratum by stratum.

    In each stratum the groups come in a random order (of `seed` alone), and each goes to the part that
    lacks most images of its share.

    Args:
        groups: (N,) the group of each record.
        strata: (N,) what every part should hold in equal measure; a group counts by its first record.
        fractions: the share of each part; they sum to one.
        seed: of the order of the groups.

    Returns:
        (N,) the number of the part of each record.
    """
    groups = np.unique(groups, return_inverse=True)[1]  # numbered without gaps
    table = pd.DataFrame({"group": groups, "stratum": strata.to_numpy()})
    sizes = table.groupby("group").agg(size=("group", "size"), stratum=("stratum", "first"))
    part_of = np.empty(len(sizes), np.int64)
    shares = np.asarray(fractions)
    for _, stratum in sizes.groupby("stratum"):
        order = np.random.default_rng(seed).permutation(stratum.index.to_numpy())
        lack = shares * stratum["size"].sum()
        for group in order:
            part_of[group] = np.argmax(lack)
            lack[part_of[group]] -= sizes["size"][group]
    return part_of[groups]


def require_disjoint(groups: Groups, splits: pd.Series) -> None:
    """Raise InputError when a group lies in two splits; groups (N,) and splits (N,) are those of the records."""
    straddling = splits.groupby(groups).nunique()
    bad = straddling[straddling > 1].index
    if len(bad):
        rows = splits.index[np.isin(groups, bad)][:6].tolist()
        raise InputError(
            f"{len(bad)} patients lie in two splits (rows {rows} of the records, and more); a figure on such a split "
            "is worthless; use data.split=patient"
        )
