"""Hold out a part of train that differs from the rest as another hospital might: a distribution shift without a test.

Such a part is held out whole, by patient, and neither trained nor chosen on: `split` becomes `shift`. The rest is split
into train and val as usual, so the operating point is chosen without knowledge of the shift.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.ndimage import laplace

from xray_pneumonia.data.splits import Groups
from xray_pneumonia.errors import InputError
from xray_pneumonia.types import Gray, Vector

Shift = Literal[
    "series_im",  # the normals named IM-
    "series_normal2",  # the normals named NORMAL2-IM-
    "earliest",  # the lowest numbers of each series and subtype
    "bacteria",
    "virus",
    "small_files",
    "large_files",
    "small_films",  # fewest pixels before they are resized
    "large_films",
    "shape",  # images whose proportions speak against their label
    "prevalence",  # a random part with as many pneumonias as the official test
    "dark",
    "bright",
    "flat",  # low contrast
    "soft",  # few fine details
    "sharp",
]
SHARE = 0.15  # of the images of a class that is held out by an extreme, or together with a named group
PREVALENCE = 0.625  # of PNEUMONIA in the official test: 390 of 624 images
CHUNK = 1024  # images read at a time
NAMES = {
    "series_im": ("patient", "IM-"),
    "series_normal2": ("patient", "NORMAL2-IM-"),
    "bacteria": ("subtype", "bacteria"),
    "virus": ("subtype", "virus"),
}
Mask = npt.NDArray[np.bool_]


def hold_out(kind: Shift, records: pd.DataFrame, images: Gray, groups: Groups, *, seed: int) -> tuple[Mask, Mask]:
    """Choose the records that are held out.

    Records of a series or subtype are held out whole, with a random share of the other class; of an extreme (the
    darkest, the softest), the outermost share of each class. `prevalence` takes records at random, and shifts nothing
    but the share of pneumonias.

    Returns:
        (N,) the records of the shifted split, and (N,) those left out of everything because their patient is in it.

    Raises:
        InputError: the records do not hold both classes of this shift, or all are alike in it.
    """
    label = records["label"].to_numpy()
    chosen = _named(kind, records)
    scores = _scores(kind, records, images, seed)
    if scores.min() == scores.max():
        raise InputError(
            f"data.split={kind}: all {len(records)} images are alike in it, so none can be held out for it; resized "
            "images have lost their size and shape: give the original files, or choose another shift"
        )
    if chosen.any() or kind not in NAMES:
        for value in {0, 1} - {*label[chosen]}:
            chosen |= _outermost(scores, label == value, groups, share=_share(kind, label, value))
    if {*label[chosen]} != {0, 1} or {*label[~chosen]} != {0, 1}:
        raise InputError(
            f"data.split={kind}: this shift needs images of both classes inside and outside of it, and the names of "
            "the public files for series and subtypes; use data.split=patient, or another shift"
        )
    return chosen, np.isin(groups, groups[chosen]) & ~chosen


def find_parts(records: pd.DataFrame, images: Gray) -> dict[str, Mask]:
    """Find in one split what each shift would hold out of it: (N,) the records, for the shifts that they have.

    Args:
        records: N rows of one split; the index is 0..N-1.
        images: (N, H, W) uint8.
    """
    groups, found = pd.factorize(records["patient"])[0], {}
    for kind in get_args(Shift):
        with suppress(InputError):  # they do not differ in it, or their names do not tell
            if kind != "earliest" or _earliness(records).notna().all():
                found[kind] = hold_out(kind, records, images, groups, seed=0)[0]
    return found


def _named(kind: Shift, records: pd.DataFrame) -> Mask:
    if kind not in NAMES:
        return np.zeros(len(records), bool)
    column, start = NAMES[kind]
    return np.array([str(value).startswith(start) for value in records[column]], bool)


def _share(kind: Shift, label: npt.NDArray[np.int_], value: int) -> float:
    """Return the share of a class that is held out; of no class more than half goes."""
    if kind != "prevalence":
        return SHARE
    wanted, sizes = np.array([1 - PREVALENCE, PREVALENCE]), np.bincount(label, minlength=2)
    total = min(SHARE * len(label), *(0.5 * sizes / wanted))
    return float(total * wanted[value] / sizes[value])


def _outermost(scores: Vector, of_class: Mask, groups: Groups, *, share: float) -> Mask:
    """Take the groups with the highest mean score until they hold the share of this class."""
    rows = np.flatnonzero(of_class)
    table = pd.DataFrame({"group": groups[rows], "score": scores[rows]})
    ranked = table.groupby("group")["score"].agg(["mean", "size"]).sort_values("mean", ascending=False, kind="stable")
    fits = ranked["size"].cumsum() <= share * len(rows)
    fits.iloc[0] = True  # one group at least
    return of_class & np.isin(groups, ranked.index[fits])


def _scores(kind: Shift, records: pd.DataFrame, images: Gray, seed: int) -> Vector:
    """Score each record: those with the highest scores are held out first."""
    if kind in OF_FILES:
        return np.asarray(OF_FILES[kind](records), np.float64)
    if kind in OF_IMAGES:
        chunks = (np.asarray(images[start : start + CHUNK], np.float64) for start in range(0, len(images), CHUNK))
        return np.concatenate([OF_IMAGES[kind](chunk) for chunk in chunks])
    return np.random.default_rng(seed).random(records["patient"].nunique())[pd.factorize(records["patient"])[0]]


def _earliness(records: pd.DataFrame) -> pd.Series:
    """Score high what has a low number in its series."""
    number = records["patient"].str.extract(r"(\d+)$")[0].astype(float)
    return -number.groupby(records["patient"].str.replace(r"\d+$", "", regex=True)).rank(pct=True)


def _misshapenness(records: pd.DataFrame) -> pd.Series:
    """Score high what is wide in the class that is narrower on average, and what is narrow in the other one."""
    proportion = records["width"] / records["height"]
    mean = proportion.groupby(records["label"]).mean()
    wider = mean.idxmax() if mean.nunique() > 1 else None
    return proportion.where(records["label"] != wider, -proportion)


def _sharpness(images: Vector) -> Vector:
    """Measure the energy of the Laplacian against the contrast (Pech-Pacheco et al., ICPR 2000)."""
    return np.asarray([laplace(one).std() / max(one.std(), 1.0) for one in images])


OF_FILES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "earliest": _earliness,
    "small_files": lambda records: -records["bytes"],
    "large_files": lambda records: records["bytes"],
    "small_films": lambda records: -records["width"] * records["height"],
    "large_films": lambda records: records["width"] * records["height"],
    "shape": _misshapenness,
}
OF_IMAGES: dict[str, Callable[[Vector], Vector]] = {
    "dark": lambda images: -images.mean(axis=(1, 2)),
    "bright": lambda images: images.mean(axis=(1, 2)),
    "flat": lambda images: -images.std(axis=(1, 2)),
    "soft": lambda images: -_sharpness(images),
    "sharp": _sharpness,
}
