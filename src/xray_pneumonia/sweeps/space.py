"""Search spaces: parameters with their ranges and conditions, and the points in them."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from xray_pneumonia.errors import InputError, nearest

Value = str | int | float
Point = dict[str, Value]
MAX_GRID = 100_000  # points; more is a typing mistake


@dataclass(frozen=True)
class Parameter:
    """One key that is searched: `when` maps other keys to the values with which it has a meaning."""

    key: str
    text: str
    distribution: BaseDistribution
    when: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def applies(self, chosen: Mapping[str, Value]) -> bool:
        """Tell whether the condition holds."""
        return all(str(chosen.get(key)) in values for key, values in self.when.items())

    def suggest(self, trial: optuna.Trial) -> Value:
        """Let the study choose."""
        return trial._suggest(self.key, self.distribution)  # type: ignore[no-any-return]

    def values(self) -> list[Value]:
        """List all values, in order.

        Raises:
            InputError: there are infinitely many.
        """
        kind = self.distribution
        if isinstance(kind, CategoricalDistribution):
            return list(kind.choices)  # type: ignore[arg-type]
        if isinstance(kind, IntDistribution):
            return list(range(kind.low, kind.high + 1, kind.step))
        assert isinstance(kind, FloatDistribution)
        if kind.step is None:
            raise InputError(f"{self.key}={self.text}: a grid needs finitely many values; use choice or range")
        return [kind.low + i * kind.step for i in range(round((kind.high - kind.low) / kind.step) + 1)]

    @property
    def finite(self) -> bool:
        """Whether a grid can hold all its values."""
        return not (isinstance(self.distribution, FloatDistribution) and self.distribution.step is None)


@dataclass(frozen=True)
class Space:
    """What is searched, and the overrides that all trials share; conditions come before what needs them."""

    parameters: tuple[Parameter, ...]
    fixed: Mapping[str, str]

    @property
    def finite(self) -> bool:
        """Whether a grid can hold all points."""
        return all(parameter.finite for parameter in self.parameters)

    def suggest(self, trial: optuna.Trial) -> Point:
        """Let the study choose a value for every parameter that applies."""
        chosen: Point = {}
        for parameter in self.parameters:
            if parameter.applies({**self.fixed, **chosen}):
                chosen[parameter.key] = parameter.suggest(trial)
        return chosen

    def grid(self) -> list[Point]:
        """List every point; parameters that do not apply are left out of it."""
        points: Iterator[Point] = iter([{}])
        for parameter in self.parameters:
            points = self._extended(points, parameter)
        listed = list(itertools.islice(points, MAX_GRID + 1))
        if len(listed) > MAX_GRID:
            raise InputError(f"the grid has over {MAX_GRID} points; set sweep.sampler=random and sweep.n_trials")
        return listed

    def _extended(self, points: Iterator[Point], parameter: Parameter) -> Iterator[Point]:
        for point in points:
            if parameter.applies({**self.fixed, **point}):
                yield from ({**point, parameter.key: value} for value in parameter.values())
            else:
                yield point

    def require(self, point: Mapping[str, Any], *, origin: str) -> Point:
        """Check a hand-written point, as text or numbers.

        Raises:
            InputError: a key is not searched or a value lies outside of its range.
        """
        known = {parameter.key: parameter for parameter in self.parameters}
        checked: Point = {}
        for key, value in point.items():
            if key not in known:
                raise InputError(f"{origin}: {key} is not searched{nearest(key, known)}")
            kind = known[key].distribution
            value = next((c for c in kind.choices if _same(c, value)), value) if _is_choice(kind) else value  # type: ignore[attr-defined]
            try:
                inside = kind._contains(kind.to_internal_repr(value))
            except ValueError:
                inside = False
            if not inside:
                raise InputError(f"{origin}: {key}={value} lies outside of {known[key].text}")
            checked[key] = value
        return checked

    def describe(self) -> dict[str, Any]:
        """Say in plain values what is searched; two spaces are the same when this is."""
        texts = {
            p.key: {"space": p.text, "when": {key: list(values) for key, values in p.when.items()}}
            if p.when
            else p.text
            for p in self.parameters
        }
        return {"space": texts, "fixed": dict(sorted(self.fixed.items()))}


def overrides(point: Mapping[str, Value]) -> list[str]:
    """Word a point as Hydra's overrides."""
    return [f"{key}={value!r}" if isinstance(value, float) else f"{key}={value}" for key, value in point.items()]


def written(value: Any) -> str:
    """Write a plain value as YAML and Hydra do."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _is_choice(distribution: BaseDistribution) -> bool:
    return isinstance(distribution, CategoricalDistribution)


def _same(choice: Any, value: Any) -> bool:
    if str(choice).lower() == written(value).lower():  # true and True are one
        return True
    try:
        return float(choice) == float(value)
    except (TypeError, ValueError):
        return False
