"""Tests whether films as a whole look like those that a model knows: its validation films, called its home.

The test is Mann and Whitney's (1947) on the input gate's scores: how often a new film scores higher than one of
validation that got the same label, so that another share of pneumonias is no difference. A small difference is none
that matters: the films differ where this chance is above `ALIKE`, beyond the play of chance.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtr

from xray_pneumonia.types import Gray, Vector

FEWEST = 10  # films, or patients where they are known
FEWEST_OF_LABEL = 20  # validation films, to be a reference of their own
ALIKE = 0.6  # films of the same hospital reach 0.5, mild blur, noise or exposure 0.6, the public adult films 0.99
LEVEL = 0.01  # how often films that are just alike are called different
SHARES = np.linspace(0, 1, 101)
RANGE = (0.05, 0.5, 0.95)
DIFFERENT = (
    'These films differ from those the model knows; its figures do not hold here: `xray adapt`, see "Another '
    "hospital's films\" in docs/evaluation.md."
)


@dataclass(frozen=True)
class Home:
    """What validation films look like to the gate.

    `scores` (2, 101) holds quantiles of the gate's scores of the films with label 0 and 1, `counts` (2,)
    their numbers; `brightness` and `side` (3,) hold the quantiles of `RANGE` of mean gray and of the longer side of the
    files in pixels, NaN where unknown.
    """

    scores: Vector
    counts: Vector
    brightness: Vector
    side: Vector

    @classmethod
    def of(cls, table: pd.DataFrame) -> "Home":
        """Describe validation films with the columns `gate_score`, `called` (0 or 1), `brightness` and `side`."""
        parts = [table.loc[table["called"] == label, "gate_score"] for label in (0, 1)]
        known = [part if len(part) >= FEWEST_OF_LABEL else table["gate_score"] for part in parts]
        ranges = (np.asarray(table[name].quantile(RANGE), np.float64) for name in ("brightness", "side"))
        counts = np.array([len(part) for part in parts], np.float64)
        return cls(np.stack([np.quantile(part, SHARES) for part in known]), counts, *ranges)

    def require_whole(self) -> None:
        """Refuse what `of` cannot have made.

        Raises:
            ValueError: it is none.
        """
        shapes = {"scores": (2, len(SHARES)), "counts": (2,), "brightness": (len(RANGE),), "side": (len(RANGE),)}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.dtype != np.float64 or array.shape != shape or np.isinf(array).any():
                raise ValueError(f"home_{name}: {array.dtype} {array.shape}, should be numbers in 64 bits, {shape}")
        if not ((np.diff(self.scores) >= 0).all() and (self.counts >= 0).all() and self.counts.sum() > 0):
            raise ValueError("home_scores should grow, home_counts count films")


@dataclass(frozen=True)
class Drift:
    """How films compare with a model's home.

    Args:
        films: how many.
        units: patients where they are known, else films: what the test counts.
        home: validation films.
        chance: that a film scores higher than one of validation with the same label; 0.5 at home; NaN below `FEWEST`.
        p_value: of a chance of `ALIKE` or less.
        beside: name, here, at home: facts that the test does not use.
    """

    films: int
    units: int
    home: int
    chance: float
    p_value: float
    beside: tuple[tuple[str, str, str], ...]

    @property
    def differs(self) -> bool:
        """Whether the films differ from those of validation."""
        return self.p_value < LEVEL

    def sentences(self) -> list[str]:
        """Word the outcome, the alarm first."""
        if np.isnan(self.chance):
            return [
                f"{self.units} films or patients: too few (below {FEWEST}) to tell whether they are like the model's."
            ]
        p = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.3f}"
        tested = (
            f"Beside {self.home} validation films, {self.films} films look less familiar in {100 * self.chance:.0f} % "
            f"of pairs (at home 50 %; up to {100 * ALIKE:.0f} % counts as alike, {p}, n = {self.units})."
        )
        beside = "; ".join(f"{name} {here} (validation {home})" for name, here, home in self.beside)
        return [*[DIFFERENT] * self.differs, tested, f"Beside it: {beside}."]


def describe(table: pd.DataFrame, images: Gray, *, threshold: float) -> pd.DataFrame:
    """Describe films for `Home.of` and `compare_with_home`.

    Args:
        table: `gate_score` and the calibrated `probability`; `patient`, `width` and `height` of the files, where known.
        images: (N, H, W) of the same rows.
        threshold: the operating point.
    """
    sizes = table[["width", "height"]].max(axis=1) if {"width", "height"} <= set(table) else np.nan
    told = {"called": table["probability"].ge(threshold).astype(int), "side": sizes}
    return table.assign(**told, brightness=[float(image.mean()) for image in images])


def compare_with_home(table: pd.DataFrame, home: Home, *, positive: str) -> Drift:
    """Test films against a model's home.

    Args:
        table: `gate_score`, `called` (0 or 1), `brightness`, `side` and, where it is known, `patient`: of a patient's
            films the mean counts once.
        home: of the model.
        positive: name of the class with label 1.
    """
    rank = pd.Series(np.nan, index=table.index)
    for label in (0, 1):
        own = table["called"] == label
        rank[own] = np.interp(table.loc[own, "gate_score"], home.scores[label], SHARES)
    rank = rank.groupby(table["patient"]).mean() if "patient" in table else rank
    units, known = len(rank), home.counts.sum()
    chance = float(rank.mean()) if units >= FEWEST else np.nan
    deviation = np.sqrt((1 / max(units, 1) + 1 / known) / 12)
    p_value = float(ndtr((ALIKE - chance) / deviation))
    return Drift(len(table), units, int(known), chance, p_value, _beside(table, home, positive))


def _beside(table: pd.DataFrame, home: Home, positive: str) -> tuple[tuple[str, str, str], ...]:
    shares = (table["called"].mean(), home.counts[1] / home.counts.sum())
    facts = [(f"called {positive}", f"{100 * shares[0]:.0f} %", f"{100 * shares[1]:.0f} %")]
    for name, title, known in (("brightness", "mean gray", home.brightness), ("side", "longer side", home.side)):
        if np.isfinite(known).all() and table[name].notna().any():
            facts.append((title, f"{table[name].median():.0f}", f"{known[0]:.0f} to {known[2]:.0f}"))
    return tuple(facts)
