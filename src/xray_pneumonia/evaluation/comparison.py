"""Tests two models on the same images: paired differences, by patient, and no p-value where too few patients differ."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.intervals import Estimate, delong_difference, interval, patient_weights
from xray_pneumonia.evaluation.metrics import BLOCK, METRICS, OF_PROBABILITIES, OF_RANKS, Mask, WeightedMetrics
from xray_pneumonia.types import Vector

FEWEST = 10  # patients of each class, for any test or interval of a difference
FEWEST_DIFFERING = 6  # patients whom two models answer differently: with five, no exact test reaches 0.05
ROUNDING = 1e-12


@dataclass(frozen=True)
class Difference:
    """One metric of both models: `gap` is first - second, with the images and patients it rests on.

    `p_value` is that of "no difference", `p_holm` the same corrected for all metrics that were tested; both are NaN
    where nothing was tested, and `test` says why. `differing` counts the patients whom the models answer differently.
    """

    name: str
    first: float
    second: float
    gap: Estimate
    p_value: float
    test: str
    differing: int = 0
    p_holm: float = np.nan


def compare(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    thresholds: tuple[float, float],
    replicates: int,
    seed: int,
    names: Collection[str] = tuple(METRICS),
) -> list[Difference]:
    """Compare two tables of predictions metric by metric, each model at its own threshold.

    AUROC is tested with DeLong's paired test on clustered data. All else is tested by swapping the answers of whole
    patients between the models at random, with mid-p (Durkalski et al., Stat Med 2003; Fagerland et al., BMC Med Res
    Methodol 2013). The p-value is about these two models, not about how they were trained.

    Raises:
        InputError: the tables are not about the same images.
    """
    if set(first["id"]) != set(second["id"]) or len(first) != len(second):
        raise InputError("compare_to: the two models were not run on the same images")
    first = first.reset_index(drop=True)
    tables = (first, second.set_index("id").loc[first["id"]].reset_index())
    models = [WeightedMetrics.of(table, threshold=point) for table, point in zip(tables, thresholds, strict=True)]
    weights = patient_weights(models[0].patients, replicates=replicates, seed=seed, images=len(first))
    samples = _joined([_gaps([model(block, names) for model in models], names) for block in weights], names)
    given = [answers([table], [point]) for table, point in zip(tables, thresholds, strict=True)]
    called = [one["called"].to_numpy() > 0 for one in given]
    rng = np.random.default_rng([seed, 1])
    chance = _swapped(tables, called, [name for name in names if name != "auroc"], replicates=replicates, rng=rng)
    differences = []
    for name in names:
        mine, other = (model.once()[name] for model in models)
        images, patients = models[0].behind[name]
        gap = interval(mine - other, samples[name], images=images, patients=patients)
        if name == "calibration_error":  # chance makes it positive, so percentiles miss the truth
            gap = replace(gap, low=np.nan, high=np.nan, basis="see its floor")
        if name == "auroc":
            gap, p_value = delong_difference(first["label"], first["logit"], tables[1]["logit"], first["patient"])
        else:
            p_value = mid_p(mine - other, chance[name])
        one = Difference(name, mine, other, gap, p_value, "DeLong" if name == "auroc" else "swapped patients")
        differences.append(unless_few(one, *given))
    return holm(differences)


def _gaps(values: Sequence[dict[str, Vector]], names: Collection[str]) -> dict[str, Vector]:
    return {name: values[0][name] - values[1][name] for name in names}


def _joined(blocks: Sequence[dict[str, Vector]], names: Collection[str]) -> dict[str, Vector]:
    return {name: np.concatenate([block[name] for block in blocks]) for name in names}


def _swapped(
    tables: Sequence[pd.DataFrame],
    called: Sequence[Mask],
    names: Collection[str],
    *,
    replicates: int,
    rng: np.random.Generator,
) -> dict[str, Vector]:
    """Compute differences (B,) after swapping the answers of each patient between the models with chance 1/2."""
    one = tables[0]
    owner = pd.factorize(one["patient"])[0]
    patients = int(owner.max()) + 1
    both = WeightedMetrics(
        pd.concat([one["label"]] * 2),
        pd.concat([table["probability"] for table in tables]),
        np.concatenate([owner, owner + patients]),
        called=np.concatenate(called),
        score=np.concatenate([table["logit"].rank() for table in tables]),  # logits of two models have no common scale
    )
    blocks, size = [], max(1, BLOCK // both.images)
    for start in range(0, replicates, size):
        kept = rng.integers(0, 2, (min(size, replicates - start), patients)).astype(np.float64)
        sides = [np.concatenate(pair, axis=1) for pair in ((kept, 1 - kept), (1 - kept, kept))]
        blocks.append(_gaps([both(side, names) for side in sides], names))
    return _joined(blocks, names)


def mid_p(gap: float, chance: Vector) -> float:
    """Return the share of chance differences (B,) that are larger than this one, counting half of those as large."""
    known = np.abs(chance[np.isfinite(chance)])
    if np.isnan(gap) or not len(known):
        return np.nan
    larger, equal = int((known > abs(gap) + ROUNDING).sum()), int((np.abs(known - abs(gap)) <= ROUNDING).sum())
    return float((larger + (equal + 1) / 2) / (len(known) + 1))


def answers(tables: Sequence[pd.DataFrame], thresholds: Sequence[float]) -> pd.DataFrame:
    """Average the answers of models to the same images, in one order: probability, and share that called PNEUMONIA."""
    called = [table["probability"].to_numpy() >= point for table, point in zip(tables, thresholds, strict=True)]
    probability = np.mean([table["probability"].to_numpy() for table in tables], axis=0)
    return tables[0][["label", "patient"]].assign(called=np.mean(called, axis=0), probability=probability)


def unless_few(one: Difference, first: pd.DataFrame, second: pd.DataFrame) -> Difference:
    """Take away p-value and interval where they would rest on too few patients; both tables are of `answers`."""
    differing = _differing(one.name, first, second)
    fewest = int(first.groupby("label")["patient"].nunique().reindex([0, 1], fill_value=0).min())
    if fewest < FEWEST:
        why = f"none: {fewest} patients of the rarer class, needs {FEWEST}"
    elif differing < FEWEST_DIFFERING:
        why = f"none: {differing} patients differ, needs {FEWEST_DIFFERING}"
    else:
        return replace(one, differing=differing)
    gap = replace(one.gap, low=np.nan, high=np.nan, basis=why)
    return replace(one, gap=gap, p_value=np.nan, test=why, differing=differing)


def _differing(name: str, first: pd.DataFrame, second: pd.DataFrame) -> int:
    """Count the patients whose answers differ, as far as a metric sees them."""
    owner = [first["patient"].to_numpy(), first["label"].to_numpy()]
    if name in OF_RANKS or name in OF_PROBABILITIES:
        change = pd.Series(np.abs(first["probability"].to_numpy() - second["probability"].to_numpy()))
    else:  # two images of a patient that change places change no rate
        change = pd.Series(first["called"].to_numpy() - second["called"].to_numpy())
    part = {"sensitivity": owner[1] == 1, "specificity": owner[1] == 0}.get(name, owner[1] >= 0)
    changed = change.where(part, 0.0).groupby(owner).sum().abs() > ROUNDING
    return int(changed.groupby(level=0).any().sum())


def holm(differences: Sequence[Difference]) -> list[Difference]:
    """Correct the p-values for the number of metrics that were tested (Holm, Scand J Stat 1979)."""
    tested = sorted((one for one in differences if not np.isnan(one.p_value)), key=lambda one: one.p_value)
    steps = [one.p_value * (len(tested) - place) for place, one in enumerate(tested)]
    corrected = dict(
        zip((one.name for one in tested), np.minimum(np.maximum.accumulate(steps or [1.0]), 1), strict=False)
    )
    return [replace(one, p_holm=float(corrected.get(one.name, np.nan))) for one in differences]
