"""Tests whether films as a whole look like those that a model knows: its validation films, called its home.

Two tests, in which another share of pneumonias is no difference, nor is a small one. Of the films: Mann and Whitney's
(1947) on the input gate's scores, how often a new film scores higher than one of validation that got the same label;
they differ where this chance is above `ALIKE`. Of the answers: Kolmogorov's distance between their evidence and the
mixture of validation's ill and well films that comes nearest; they differ where it is above `NEAR`. Together they err
with `LEVEL` (Holm).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import logit, ndtr

from xray_pneumonia.types import Gray, Vector

CERTAIN = 1e-12  # no probability is nearer to 0 or 1

FEWEST = 10  # films, or patients where they are known
FEWEST_OF_LABEL = 20  # validation films, to be a reference of their own
ALIKE = 0.6  # films of the same hospital reach 0.5, mild blur, noise or exposure 0.6, the public adult films 0.99
NEAR = 0.05  # of the films another evidence is no difference that matters
LEVEL = 0.01  # how often films that are just alike are called different, by either test
DRAWN = 499  # batches and validation splits, for the play of chance
SHARES = np.linspace(0, 1, 101)
RANGE = (0.05, 0.5, 0.95)
DIFFERENT = (
    'These films differ from those the model knows; its figures do not hold here: `xray adapt`, see "Another '
    "hospital's films\" in docs/evaluation.md."
)


@dataclass(frozen=True)
class Home:
    """What validation films look like to the gate.

    `scores` (2, 101) holds quantiles of the gate's scores of the films called 0 and 1, `counts` (2,)
    their numbers; `brightness` and `side` (3,) hold the quantiles of `RANGE` of mean gray and of the longer side of the
    files in pixels, NaN where unknown. `evidence` (2, 101) holds quantiles of the evidence of the well and the ill,
    `truth` (2,) their numbers; None in older gates.
    """

    scores: Vector
    counts: Vector
    brightness: Vector
    side: Vector
    evidence: Vector | None = None
    truth: Vector | None = None

    @classmethod
    def of(cls, table: pd.DataFrame) -> "Home":
        """Describe validation films with the columns that `describe` gives, and `label`."""
        parts = [table.loc[table["called"] == label, "gate_score"] for label in (0, 1)]
        known = [part if len(part) >= FEWEST_OF_LABEL else table["gate_score"] for part in parts]
        brightness, side = (np.asarray(table[name].quantile(RANGE), np.float64) for name in ("brightness", "side"))
        counts = np.array([len(part) for part in parts], np.float64)
        evidence = [np.quantile(table.loc[table["label"] == label, "evidence"], SHARES) for label in (0, 1)]
        truth = np.bincount(table["label"], minlength=2).astype(np.float64)
        scores = np.stack([np.quantile(part, SHARES) for part in known])
        return cls(scores, counts, brightness, side, np.stack(evidence), truth)

    def require_whole(self) -> None:
        """Refuse what `of` cannot have made.

        Raises:
            ValueError: it is none.
        """
        shapes = {"scores": (2, len(SHARES)), "counts": (2,), "brightness": (len(RANGE),), "side": (len(RANGE),)}
        if (self.evidence is None) != (self.truth is None):
            raise ValueError("home_evidence, home_truth: one of them is missing")
        shapes |= {} if self.evidence is None else {"evidence": (2, len(SHARES)), "truth": (2,)}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.dtype != np.float64 or array.shape != shape or np.isinf(array).any():
                raise ValueError(f"home_{name}: {array.dtype} {array.shape}, should be numbers in 64 bits, {shape}")
        if not ((np.diff(self.scores) >= 0).all() and (self.counts >= 0).all() and self.counts.sum() > 0):
            raise ValueError("home_scores should grow, home_counts count films")
        if self.evidence is not None and not (np.isfinite(self.evidence).all() and (np.diff(self.evidence) >= 0).all()):
            raise ValueError("home_evidence should be finite and grow")
        if self.truth is not None and not ((self.truth >= 1) & (self.truth < 1e9)).all():
            raise ValueError("home_truth should count films")


@dataclass(frozen=True)
class Drift:
    """How films compare with a model's home.

    Args:
        films: how many.
        units: patients where they are known, else films: what the test counts.
        home: validation films.
        chance: that a film scores higher than one of validation with the same label; 0.5 at home; NaN below `FEWEST`.
        p_value: of a chance of `ALIKE` or less.
        apart: share of the films whose evidence has to move to be that of validation at some prevalence; NaN below
            `FEWEST`, and for an older gate.
        p_apart: of `NEAR` or less.
        beside: name, here, at home: facts that the test does not use.
    """

    films: int
    units: int
    home: int
    chance: float
    p_value: float
    beside: tuple[tuple[str, str, str], ...]
    apart: float = np.nan
    p_apart: float = np.nan

    @property
    def differs(self) -> bool:
        """Whether the films differ from those of validation."""
        return any(p_value < LEVEL for p_value in self.corrected)

    @property
    def corrected(self) -> tuple[float, float]:
        """The p-values of films and answers, corrected for being two (Holm)."""
        both = self.p_value, self.p_apart
        if np.isnan(both).any():
            return both
        least, most = min(1.0, 2 * min(both)), max(both)
        return (least, max(least, most)) if both[0] <= both[1] else (max(least, most), least)

    def sentences(self) -> list[str]:
        """Word the outcome, the alarm first."""
        if np.isnan(self.chance):
            return [
                f"{self.units} films or patients: too few (below {FEWEST}) to tell whether they are like the model's."
            ]
        films, answers = ("p < 0.001" if one < 0.001 else f"p = {one:.3f}" for one in self.corrected)
        tested = (
            f"In {100 * self.chance:.0f} % of pairs one of these {self.films} films looks less familiar than one of "
            f"{self.home} validation films (50 % at home; up to {100 * ALIKE:.0f} % counts as alike, {films}, "
            f"n = {self.units})."
        )
        if not np.isnan(self.apart):
            tested += (
                f" However many of them are ill, {100 * self.apart:.0f} % of the answers are not as at home (up to "
                f"{100 * NEAR:.0f} % counts as alike, {answers}, n = {self.units}). Both p-values are corrected for "
                f"there being two; below {LEVEL:g} the films are called different."
            )
        beside = "; ".join(f"{name} {here} (validation {home})" for name, here, home in self.beside)
        return [*[DIFFERENT] * self.differs, tested, f"Beside it: {beside}."]


def describe(table: pd.DataFrame, images: Gray, *, threshold: float, prevalence: float | None) -> pd.DataFrame:
    """Describe films for `Home.of` and `compare_with_home`.

    Args:
        table: `gate_score` and the calibrated `probability`; `patient`, `width` and `height` of the files, where known.
        images: (N, H, W) of the same rows.
        threshold: the operating point.
        prevalence: at which the probability holds; None in older models, whose gates know no home.
    """
    sizes = table[["width", "height"]].max(axis=1) if {"width", "height"} <= set(table) else np.nan
    told = {"called": table["probability"].ge(threshold).astype(int), "side": sizes}
    evidence = evidence_of(table["probability"], np.nan if prevalence is None else prevalence)
    return table.assign(**told, brightness=[float(image.mean()) for image in images], evidence=evidence)


def evidence_of(probability: npt.ArrayLike, prevalence: npt.ArrayLike) -> Vector:
    """Take from probabilities what they owe to a prevalence."""
    return np.asarray(logit(np.clip(probability, CERTAIN, 1 - CERTAIN)) - logit(prevalence), np.float64)


def compare_with_home(table: pd.DataFrame, home: Home, *, positive: str) -> Drift:
    """Test films against a model's home.

    Args:
        table: what `describe` gives and, where it is known, `patient`: of a patient's films the mean counts once.
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
    apart = (np.nan, np.nan)
    if units >= FEWEST and home.evidence is not None and home.truth is not None:
        apart = _compare_answers(table, home.evidence, home.truth.astype(int), units)
    return Drift(len(table), units, int(known), chance, p_value, _beside(table, home, positive), *apart)


def _compare_answers(
    table: pd.DataFrame, quantiles: Vector, truth: npt.NDArray[np.int_], units: int
) -> tuple[float, float]:
    """Measure how far evidence lies from the nearest mixture of home's two classes; returns distance and p-value.

    The play of chance, in the batch and in the validation split, is simulated at that mixture.
    """
    own = table["patient"] if "patient" in table else pd.Series(np.arange(len(table)), table.index)
    weight = (1 / own.groupby(own).transform("size") / units).to_numpy()
    cuts, evidence = np.unique(quantiles), table["evidence"].to_numpy(np.float64)
    order = np.argsort(evidence)
    here = np.r_[0, weight[order].cumsum()][np.searchsorted(evidence[order], cuts, side="right")]
    well, ill = (np.interp(cuts, one, SHARES) for one in quantiles)
    mixtures = SHARES[:, None] * ill + (1 - SHARES[:, None]) * well
    gaps = np.abs(here - mixtures).max(axis=1)
    rng = np.random.default_rng(0)

    def draw(share: Vector, count: int) -> Vector:
        drawn = rng.multinomial(count, np.maximum(np.diff(share, prepend=0, append=1), 0), size=DRAWN)
        return np.asarray(drawn.cumsum(axis=1)[:, :-1] / count)

    batches, well, ill = draw(mixtures[gaps.argmin()], units), draw(well, truth[0]), draw(ill, truth[1])
    chance = np.min([np.abs(batches - share * ill - (1 - share) * well).max(axis=1) for share in SHARES[::4]], axis=0)
    return float(gaps.min()), float((1 + (chance + NEAR >= gaps.min()).sum()) / (DRAWN + 1))


def _beside(table: pd.DataFrame, home: Home, positive: str) -> tuple[tuple[str, str, str], ...]:
    shares = (table["called"].mean(), home.counts[1] / home.counts.sum())
    facts = [(f"called {positive}", f"{100 * shares[0]:.0f} %", f"{100 * shares[1]:.0f} %")]
    for name, title, known in (("brightness", "mean gray", home.brightness), ("side", "longer side", home.side)):
        if np.isfinite(known).all() and table[name].notna().any():
            facts.append((title, f"{table[name].median():.0f}", f"{known[0]:.0f} to {known[2]:.0f}"))
    return tuple(facts)
