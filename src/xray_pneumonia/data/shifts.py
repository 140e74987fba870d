"""Parts of train that differ from the rest as another hospital might: a shift that is seen without a test.

Such a part is held out whole, by patient, and neither trained nor chosen on: `split` becomes `shift`. The rest is cut
into train and val as ever, so the operating point comes from a plain validation and meets the shift unprepared.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.ndimage import laplace

from xray_pneumonia.data.splits import Groups
from xray_pneumonia.errors import InputError
from xray_pneumonia.types import Gray

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
    "shape",  # films whose proportions speak against their label
    "prevalence",  # a random part with as many pneumonias as the official test
    "dark",
    "bright",
    "flat",  # low contrast
    "soft",  # few fine details
    "sharp",
]
SHARE = 0.15  # of the images of each class that is held out by an extreme, or beside a named group
PREVALENCE = 0.625  # of PNEUMONIA in the official test: 390 of 624 images
CHUNK = 1024  # images read at a time
NAMES = {
    "series_im": ("patient", "IM-"),
    "series_normal2": ("patient", "NORMAL2-IM-"),
    "bacteria": ("subtype", "bacteria"),
    "virus": ("subtype", "virus"),
}
Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]


def hold_out(kind: Shift, records: pd.DataFrame, images: Gray, groups: Groups, *, seed: int) -> tuple[Mask, Mask]:
    """Choose what is held out.

    Groups of records that are named (a series, a subtype) go out whole, with a random share of the other class
    beside them; of an extreme (the darkest, the softest), the outermost share of each class goes. `prevalence` takes at
    random, and shifts nothing but the share of the ill.

    Args:
        kind: of the shift.
        records: N rows; the index is 0..N-1.
        images: (N, H, W) uint8, decoded.
        groups: (N,) what must stay together.
        seed: of the random share.

    Returns:
        (N,) what makes up the shifted split, and (N,) what is left out of everything because its patient is in it.

    Raises:
        InputError: the records do not hold both classes of this shift, or all are alike in it.
    """
    label = records["label"].to_numpy()
    chosen = _named(kind, records)
    scores = _scores(kind, records, images, seed)
    if scores.min() == scores.max():
        raise InputError(
            f"data.split={kind}: all {len(records)} images are alike in it, so none can be held out for it; films that "
            "were resized have lost their size and shape: give the original files, or choose another shift"
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


def _outermost(scores: Values, of_class: Mask, groups: Groups, *, share: float) -> Mask:
    """Take the groups with the highest mean score until they hold the share of this class."""
    rows = np.flatnonzero(of_class)
    table = pd.DataFrame({"group": groups[rows], "score": scores[rows]})
    ranked = table.groupby("group")["score"].agg(["mean", "size"]).sort_values("mean", ascending=False, kind="stable")
    taken = ranked.index[
        (ranked["size"].cumsum() <= max(1, share * len(rows))).to_numpy() | (np.arange(len(ranked)) == 0)
    ]
    return of_class & np.isin(groups, taken)


def _scores(kind: Shift, records: pd.DataFrame, images: Gray, seed: int) -> Values:
    """Score each record: the higher, the sooner it is held out."""
    if kind in FACTS:
        return np.asarray(FACTS[kind](records), np.float64)
    if kind == "earliest":
        number = records["patient"].str.extract(r"(\d+)$")[0].astype(float)
        return np.asarray(-number.groupby(records["patient"].str.replace(r"\d+$", "", regex=True)).rank(pct=True))
    if kind in LOOKS:
        return np.concatenate([LOOKS[kind](chunk) for chunk in _chunks(images)])
    return np.random.default_rng(seed).random(records["patient"].nunique())[pd.factorize(records["patient"])[0]]


def _misshapen(records: pd.DataFrame) -> pd.Series:
    """Score high what is wide in the class that is narrower on average, and what is narrow in the other one."""
    proportion = records["width"] / records["height"]
    mean = proportion.groupby(records["label"]).mean()
    wider = mean.idxmax() if mean.nunique() > 1 else None
    return proportion.where(records["label"] != wider, -proportion)


def _chunks(images: Gray) -> Iterator[Values]:
    for start in range(0, len(images), CHUNK):
        yield np.asarray(images[start : start + CHUNK], np.float64)


def _sharpness(images: Values) -> Values:
    """Measure the energy of the Laplacian against the contrast (Pech-Pacheco et al., ICPR 2000)."""
    return np.asarray([laplace(one).std() / max(one.std(), 1.0) for one in images])


FACTS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "small_files": lambda records: -records["bytes"],
    "large_files": lambda records: records["bytes"],
    "small_films": lambda records: -records["width"] * records["height"],
    "large_films": lambda records: records["width"] * records["height"],
    "shape": _misshapen,
}
LOOKS: dict[str, Callable[[Values], Values]] = {
    "dark": lambda images: -images.mean(axis=(1, 2)),
    "bright": lambda images: images.mean(axis=(1, 2)),
    "flat": lambda images: -images.std(axis=(1, 2)),
    "soft": lambda images: -_sharpness(images),
    "sharp": _sharpness,
}
