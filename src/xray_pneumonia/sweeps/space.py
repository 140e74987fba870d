"""Reads search spaces in Hydra's sweep syntax, from the command line and YAML, and lists, suggests, checks points."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

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

    def require(self, value: Any, *, origin: str) -> Value:
        """Return a hand-written value as the distribution holds it.

        Raises:
            InputError: it lies outside of the range.
        """
        kind = self.distribution
        if isinstance(kind, CategoricalDistribution):
            value = next((choice for choice in kind.choices if _same(choice, value)), value)
        try:
            inside = kind._contains(kind.to_internal_repr(value))
        except ValueError:
            inside = False
        if not inside:
            raise InputError(f"{origin}: {self.key}={value} lies outside of {self.text}")
        return value  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Space:
    """The searched parameters, each behind those that its condition names, and the overrides that all trials share."""

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
                chosen[parameter.key] = trial._suggest(parameter.key, parameter.distribution)
        return chosen

    def fits(self, n_trials: int | None) -> bool:
        """Tell whether a grid holds all points, and at most `n_trials` of them; None sets no limit."""
        try:
            return self.finite and (n_trials is None or len(self.grid()) <= n_trials)
        except InputError:
            return False

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
        """Check a hand-written point, given as text or numbers.

        Raises:
            InputError: a key is not searched or a value lies outside of its range.
        """
        known = {parameter.key: parameter for parameter in self.parameters}
        for key in point:
            if key not in known:
                raise InputError(f"{origin}: {key} is not searched{nearest(key, known)}")
        return {key: known[key].require(value, origin=origin) for key, value in point.items()}

    def describe(self) -> dict[str, Any]:
        """Describe the space in plain values; equal descriptions mean equal spaces."""
        texts = {
            p.key: {"space": p.text, "when": {key: list(values) for key, values in p.when.items()}}
            if p.when
            else p.text
            for p in self.parameters
        }
        return {"space": texts, "fixed": dict(sorted(self.fixed.items()))}


def overrides(point: Mapping[str, Value]) -> list[str]:
    """Write a point as Hydra's overrides."""
    return [f"{key}={value!r}" if isinstance(value, float) else f"{key}={value}" for key, value in point.items()]


def read_space(arguments: Sequence[str], configured: Mapping[str, Any]) -> Space:
    """Make a space from the command line and the config group `sweep`.

    A key that the command line fixes is not searched; one that it searches is searched as it says.

    Args:
        arguments: overrides, as typed.
        configured: `sweep.space`: a range, a list of values, or a mapping of `space` and `when` for each key.

    Raises:
        InputError: a range is empty or contradicts itself, or a condition can never hold.
    """
    fixed: dict[str, str] = {}
    parameters: dict[str, Parameter] = {}
    for override in _parse(list(arguments)):
        key = override.get_key_element()
        if key in parameters or (key in fixed and override.is_sweep_override()):
            raise InputError(f"{override.input_line}: {key} is set twice; one of the two is meant")
        if override.is_sweep_override():
            parameters[key] = _parameter(override, {})
        else:
            fixed[key] = str(override.input_line).partition("=")[2]
    for key, node in configured.items():
        if key not in fixed and key not in parameters:
            parameters[key] = _configured(key, node)
    return Space(_ordered(parameters, fixed), fixed)


def _parse(lines: list[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(lines)
    except HydraException as error:
        raise InputError(f"the space cannot be read: {' '.join(str(error).split())}") from error


def _configured(key: str, node: Any) -> Parameter:
    """Read one entry of `sweep.space`."""
    text, when = node, dict[str, Any]()
    if isinstance(node, Mapping):
        if set(node) != {"space", "when"} or not isinstance(node["when"], Mapping):
            raise InputError(f"sweep.space.{key}={dict(node)}: write a range, or a mapping with `space` and `when`")
        text, when = node["space"], dict(node["when"])
    if isinstance(text, list):
        text = f"choice({','.join(_written(value) for value in text)})"
    [override] = _parse([f"{key}={text}"])
    if not override.is_sweep_override():
        raise InputError(f"sweep.space.{key}={text}: nothing to search; write choice(...), range(...) or interval(...)")
    return _parameter(override, {k: tuple(map(str, v if isinstance(v, list) else [v])) for k, v in when.items()})


def _parameter(override: Override, when: Mapping[str, tuple[str, ...]]) -> Parameter:
    key, text = override.get_key_element(), str(override.input_line).partition("=")[2]
    try:
        return Parameter(key, text, _distribution(override), when)
    except ValueError as error:
        raise InputError(f"{key}={text}: {error}") from error


def _distribution(override: Override) -> BaseDistribution:
    sweep: Any = override._value
    if isinstance(sweep, Glob):
        raise ValueError("glob(...) is not searched; list the values")
    log = "log" in sweep.tags
    if unknown := sweep.tags - {"log"}:
        raise ValueError(f"the tag {', '.join(sorted(unknown))} means nothing here; there is log")
    if isinstance(sweep, ChoiceSweep):
        choices = list(override.sweep_string_iterator())
        if log or len(set(choices)) < len(choices):
            raise ValueError("log has no meaning for choices" if log else "a value stands there twice")
        return CategoricalDistribution(choices)
    if isinstance(sweep, RangeSweep):
        if not (float(sweep.stop or 0) - float(sweep.start or 0)) / float(sweep.step) <= MAX_GRID:
            raise ValueError(f"the range has over {MAX_GRID} values; use interval(...)")
        return _stepped(sorted(sweep.range()), log=log)
    assert isinstance(sweep, IntervalSweep)
    low, high = sweep.start, sweep.end
    if low is None or high is None or not -math.inf < low < high < math.inf:
        raise ValueError("an interval needs a lower end below its upper end, both of them finite")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _stepped(values: list[Any], *, log: bool) -> BaseDistribution:
    """Make a distribution of a range's sorted values; its upper end is left out, as in Python."""
    if not values:
        raise ValueError("the range is empty; its upper end is left out")
    step = values[1] - values[0] if len(values) > 1 else 1
    if all(isinstance(value, int) for value in values):
        return IntDistribution(values[0], values[-1], log=log, step=step)
    if log:
        raise ValueError("a range of fractions has no logarithmic steps; use tag(log, interval(...))")
    return FloatDistribution(float(values[0]), float(values[-1]), step=float(step))


def _ordered(parameters: Mapping[str, Parameter], fixed: Mapping[str, str]) -> tuple[Parameter, ...]:
    """Order parameters so that each stands behind those that its condition names."""
    for parameter in parameters.values():
        _require_possible(parameter, parameters, fixed)
    waiting, ordered = dict(parameters), list[Parameter]()
    while waiting:
        ready = [p for p in waiting.values() if not any(key in waiting for key in p.when)]
        if not ready:
            raise InputError(f"sweep.space: the conditions of {', '.join(waiting)} wait for each other")
        ordered += ready
        waiting = {key: p for key, p in waiting.items() if p not in ready}
    return tuple(ordered)


def _require_possible(parameter: Parameter, parameters: Mapping[str, Parameter], fixed: Mapping[str, str]) -> None:
    """Refuse a condition on a key that is neither searched nor set, or on a value that it never has."""
    origin = f"sweep.space.{parameter.key}"
    for key, values in parameter.when.items():
        if key not in parameters and key not in fixed:
            raise InputError(f"{origin}: its condition asks for {key}, which is neither searched nor set")
        if key in parameters and parameters[key].finite:
            possible = {str(value) for value in parameters[key].values()}
            if impossible := [value for value in values if value not in possible]:
                raise InputError(f"{origin}: {key}={','.join(impossible)} never happens; it is {parameters[key].text}")


def _written(value: Any) -> str:
    """Write a plain value as YAML and Hydra do."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _same(choice: Any, value: Any) -> bool:
    if str(choice).lower() == _written(value).lower():  # true and True are one
        return True
    try:
        return float(choice) == float(value)
    except (TypeError, ValueError):
        return False
