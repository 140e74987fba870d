"""Two trainings of one config compared: every metric of every epoch, every weight, and the band that was declared."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import stdev
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

Level = Literal["bit-identical", "within the band", "different"]
IDENTICAL, BAND, DIFFERENT = "bit-identical", "within the band", "different"
LEAST_SEEDS = 3  # fewer say nothing of a spread
NARROWEST = 0.001  # of a band's half-width: seeds that happen to agree promise no more

# metric -> epoch, counted from 1 -> value
History = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Departure:
    """The first value that is not what it was; None where one side has none."""

    epoch: int
    metric: str
    stored: float | None
    found: float | None


@dataclass(frozen=True)
class Band:
    """How far metrics of the kept epoch may be off where bits cannot agree.

    Args:
        widths: half-width by metric.
        source: what it rests on.
    """

    widths: dict[str, float]
    source: str

    def misses(self, stored: Mapping[str, float], found: Mapping[str, float]) -> list[str]:
        """List the metrics that are outside, or missing."""
        return [
            name
            for name, width in self.widths.items()
            if not abs(stored.get(name, math.nan) - found.get(name, math.nan)) <= width
        ]


@dataclass(frozen=True)
class Weights:
    """How many tensors there are, how many differ in any bit, and by how much at most."""

    tensors: int
    differing: int
    largest: float


@dataclass(frozen=True)
class Verdict:
    """What came out.

    Args:
        level: of agreement.
        circumstances: what differs between then and now, with both values; empty where bits had to agree.
        epochs: that were compared.
        metrics: that were compared in each.
        first: the first departure.
        departures: how many values departed.
        weights: of the kept epoch.
        stored: the band's metrics in the kept epoch, then.
        found: the same, now.
        band: as declared before the training.
    """

    level: Level
    circumstances: dict[str, tuple[str, str]]
    epochs: int
    metrics: int
    first: Departure | None
    departures: int
    weights: Weights
    stored: dict[str, float]
    found: dict[str, float]
    band: Band
    missed: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Give it as JSON takes it."""
        return asdict(self)

    def __str__(self) -> str:
        """Say it in one line."""
        if self.level == IDENTICAL:
            return f"bit-identical: {self.metrics} metrics of {self.epochs} epochs, {self.weights.tensors} tensors"
        where = "the weights of the kept epoch"
        if self.first is not None:
            where = f"epoch {self.first.epoch}, {self.first.metric}: {self.first.stored} then, {self.first.found} now"
        return f"{self.level}: departs first in {where}"


def judge(
    stored: History,
    found: History,
    weights: Weights,
    *,
    band: Band,
    circumstances: dict[str, tuple[str, str]],
    monitor: str | None,
    mode: str,
) -> Verdict:
    """Compare; anything but the same bits is different, unless circumstances differ and the band holds.

    Args:
        stored: the metrics of each epoch then.
        found: the same now.
        weights: compared already.
        band: declared before the training.
        circumstances: what differs of machine, threads, versions and code.
        monitor: the metric that chooses the epoch that is kept; None keeps the last.
        mode: `max` or `min`.
    """
    departures = compare_histories(stored, found)
    then, now = (at_kept(side, list(band.widths), monitor=monitor, mode=mode) for side in (stored, found))
    missed = band.misses(then, now)
    level: Level = DIFFERENT  # type: ignore[assignment]
    if not departures and not weights.differing:
        level = IDENTICAL  # type: ignore[assignment]
    elif circumstances and not missed:
        level = BAND  # type: ignore[assignment]
    epochs = {epoch for values in stored.values() for epoch in values}
    first = departures[0] if departures else None
    sizes = {"epochs": len(epochs), "metrics": len(stored), "departures": len(departures)}
    return Verdict(
        level, circumstances, first=first, weights=weights, stored=then, found=now, band=band, missed=missed, **sizes
    )


def compare_histories(stored: History, found: History) -> list[Departure]:
    """List what departs, the earliest epoch first, training before validation and losses before the rest.

    Metrics are logged in single precision, so they are compared in it.
    """
    names = sorted({*stored, *found}, key=lambda name: (not name.startswith("train/"), "loss" not in name, name))
    epochs = sorted({epoch for side in (stored, found) for values in side.values() for epoch in values})
    return [
        Departure(epoch, name, stored.get(name, {}).get(epoch), found.get(name, {}).get(epoch))
        for epoch in epochs
        for name in names
        if not _same(stored.get(name, {}).get(epoch), found.get(name, {}).get(epoch))
    ]


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.float32(one).tobytes() == np.float32(other).tobytes()


def compare_weights(stored: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Weights:
    """Compare tensors bit by bit; one that is missing or of another shape or type differs by infinity."""
    gaps = {name: _gap(stored.get(name), found.get(name)) for name in {*stored, *found}}
    differing = [gap for gap in gaps.values() if gap is not None]
    return Weights(len(gaps), len(differing), max(differing, default=0.0))


def _gap(one: Tensor | None, other: Tensor | None) -> float | None:
    """Measure the largest difference; None where every bit is the same."""
    if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
        return math.inf
    one, other = (side.detach().cpu().contiguous().reshape(-1) for side in (one, other))
    if torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
        return None
    gap = float((one.double() - other.double()).abs().max())
    return math.inf if math.isnan(gap) else gap


def at_kept(history: History, names: Sequence[str], *, monitor: str | None, mode: str) -> dict[str, float]:
    """Read metrics in the epoch in which the monitored one was best, the earliest of equals; None means the last."""
    if monitor is None:
        kept = max((epoch for name in names for epoch in history.get(name, {})), default=-1)
    else:
        sign, monitored = -1 if mode == "max" else 1, history.get(monitor, {})
        kept = min(sorted(monitored), key=lambda epoch: sign * monitored[epoch], default=-1)
    return {name: history[name][kept] for name in names if kept in history.get(name, {})}


def declare_band(seeds: Mapping[str, Sequence[float]], default: Mapping[str, float]) -> Band:
    """Choose the band before anything is trained.

    Args:
        seeds: by metric, its values in runs that differ in the seed alone.
        default: half-widths where there are too few of those.

    Returns:
        The half-width of the 95 % prediction interval for one more run (Student's t), or the default.
    """
    count = min((len(values) for values in seeds.values()), default=0)
    if count < LEAST_SEEDS or set(seeds) != set(default):
        return Band(
            dict(default), f"the stated default: {count} runs that differ in the seed alone, {LEAST_SEEDS} needed"
        )
    factor = float(stats.t.ppf(0.975, count - 1)) * math.sqrt(1 + 1 / count)
    widths = {name: max(NARROWEST, factor * stdev(values)) for name, values in seeds.items()}
    return Band(widths, f"95 % of further runs, from {count} that differ in the seed alone")
