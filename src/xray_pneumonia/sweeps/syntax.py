"""Spaces as Hydra users write them: choice, range, interval, tag(log, ...), on the command line and in YAML."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from xray_pneumonia.errors import InputError
from xray_pneumonia.sweeps.space import Parameter, Space, written


def read(arguments: Sequence[str], configured: Mapping[str, Any]) -> Space:
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
    for override in _parsed(list(arguments)):
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


def _parsed(lines: list[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(lines)
    except HydraException as error:
        raise InputError(f"the space cannot be read: {' '.join(str(error).split())}") from error


def _configured(key: str, node: Any) -> Parameter:
    """Read one entry of `sweep.space`."""
    when: Mapping[str, Any] = {}
    text = node
    if isinstance(node, Mapping):
        if set(node) != {"space", "when"} or not isinstance(node["when"], Mapping):
            raise InputError(f"sweep.space.{key}={dict(node)}: write a range, or a mapping with `space` and `when`")
        text, when = node["space"], node["when"]
    if isinstance(text, list):
        text = f"choice({','.join(written(value) for value in text)})"
    [override] = _parsed([f"{key}={text}"])
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
    log = "log" in sweep.tags
    unknown = sweep.tags - {"log"}
    if unknown:
        raise ValueError(f"the tag {', '.join(sorted(unknown))} means nothing here; there is log")
    if isinstance(sweep, ChoiceSweep):
        choices = list(override.sweep_string_iterator())
        if log or len(set(choices)) < len(choices):
            raise ValueError("log has no meaning for choices" if log else "a value stands there twice")
        return CategoricalDistribution(choices)
    if isinstance(sweep, RangeSweep):
        return _stepped(list(sweep.range()), log=log)
    assert isinstance(sweep, IntervalSweep)
    low, high = sweep.start, sweep.end
    if low is None or high is None or low >= high:
        raise ValueError("an interval needs a lower end below its upper end")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _stepped(values: list[Any], *, log: bool) -> BaseDistribution:
    """Make a distribution of a range's values; its upper end is left out, as in Python."""
    if not values:
        raise ValueError("the range is empty; its upper end is left out")
    values = sorted(values)
    if all(isinstance(value, int) for value in values):
        step = values[1] - values[0] if len(values) > 1 else 1
        return IntDistribution(values[0], values[-1], log=log, step=step)
    numbers = [float(value) for value in values]
    if log:
        raise ValueError("a range of fractions has no logarithmic steps; use tag(log, interval(...))")
    return FloatDistribution(numbers[0], numbers[-1], step=numbers[1] - numbers[0] if len(numbers) > 1 else 1.0)


def _ordered(parameters: Mapping[str, Parameter], fixed: Mapping[str, str]) -> tuple[Parameter, ...]:
    """Put parameters behind those that their conditions ask for."""
    for parameter in parameters.values():
        for key, values in parameter.when.items():
            _require_possible(parameter, key, values, parameters, fixed)
    waiting, ordered = dict(parameters), list[Parameter]()
    while waiting:
        ready = [p for p in waiting.values() if not any(key in waiting for key in p.when)]
        if not ready:
            raise InputError(f"sweep.space: the conditions of {', '.join(waiting)} wait for each other")
        ordered += ready
        waiting = {key: p for key, p in waiting.items() if p not in ready}
    return tuple(ordered)


def _require_possible(
    parameter: Parameter,
    key: str,
    values: tuple[str, ...],
    parameters: Mapping[str, Parameter],
    fixed: Mapping[str, str],
) -> None:
    if key not in parameters:
        if key not in fixed:
            raise InputError(
                f"sweep.space.{parameter.key}: its condition asks for {key}, which is neither searched nor set"
            )
        return
    possible = [str(value) for value in parameters[key].values()] if parameters[key].finite else list(values)
    impossible = [value for value in values if value not in possible]
    if impossible:
        raise InputError(
            f"sweep.space.{parameter.key}: {key}={','.join(impossible)} never happens; it is {parameters[key].text}"
        )
