"""Signatures as schemas: which keys, types and ranges a constructor takes, and how to say what is wrong."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, get_type_hints


def problems(values: dict[str, Any], target: Callable[..., Any], *, prefix: str) -> list[str]:
    """Validate values against the keyword-only parameters of a target.

    Args:
        values: what a config sets.
        target: a class or function with annotated parameters.
        prefix: the dotted key of the node, with its last dot.

    Returns:
        One line for each wrong key: the key, its value, what it should be.
    """
    from pydantic import ValidationError

    names, adapter = _adapter(target)
    try:
        adapter.validate_python(values)
    except ValidationError as error:
        return _worded(error.errors(), values, names, prefix=prefix)
    return []


@cache
def _adapter(target: Callable[..., Any]) -> tuple[list[str], Any]:
    """Make pydantic's validator of the keyword-only parameters of a target, which takes it milliseconds."""
    from pydantic import ConfigDict, TypeAdapter, with_config
    from typing_extensions import TypedDict

    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    names = [p.name for p in inspect.signature(target).parameters.values() if p.kind is p.KEYWORD_ONLY]
    rules = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    schema = with_config(rules)(TypedDict("schema", {name: hints[name] for name in names}))  # type: ignore[misc, operator]
    return names, TypeAdapter(schema)


def _worded(errors: list[Any], values: dict[str, Any], names: list[str], *, prefix: str) -> list[str]:
    """Word pydantic's errors: one line for each key, with its value and what it should be."""
    lines: dict[str, list[str]] = {}
    for error in errors:
        path, value = _real_path(error["loc"], values)
        key = f"{prefix}{'.'.join(map(str, path))}={value!r}"
        what = error["msg"].replace("Input should", "should")
        if error["type"] == "extra_forbidden":
            what = f"unknown key{nearest(str(path[-1]), names, prefix)}"
        elif error["type"] == "missing":
            key = key if path else prefix.rstrip(".") or "the config"
            what = f"lacks {error['loc'][-1]}"
        lines.setdefault(key, []).append(what)
    return [f"{key}: {' or '.join(parts)}" for key, parts in lines.items()]


def _real_path(loc: tuple[int | str, ...], values: Any) -> tuple[list[int | str], Any]:
    """Cut from pydantic's location what names a branch of a union instead of a key."""
    path: list[int | str] = []
    for step in loc:
        known = values if isinstance(values, dict) else dict(enumerate(values)) if isinstance(values, list) else {}
        if step in known:
            path.append(step)
            values = known[step]
    return path, values


def nearest(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """Word the nearest valid name as the end of a sentence, or nothing."""
    close = difflib.get_close_matches(name, list(valid), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(prefix + name for name in close)}?" if close else ""
