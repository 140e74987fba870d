"""Check values against the signatures of what takes them, with pydantic; every problem in one line."""

import inspect
import json
from collections.abc import Callable, Collection
from functools import cache
from typing import Any, NotRequired, get_type_hints

from xray_pneumonia.suggestions import suggest


def problems(
    values: dict[str, Any], target: Callable[..., Any], *, prefix: str, handed_in: Collection[str] | None = None
) -> list[str]:
    """Validate values against the parameters of a target that are keys.

    Args:
        values: what a config sets.
        target: a class or function with annotated parameters.
        prefix: the dotted key of the node, with its last dot.
        handed_in: of a class of others, the parameters that the program passes and that are no keys; None for a
            target of this package, whose keys are its keyword-only parameters.

    Returns:
        One line for each wrong key: the key, its value, what it should be.
    """
    from pydantic import ValidationError

    names, adapter = _adapter(target) if handed_in is None else _foreign_adapter(target, tuple(handed_in))
    try:
        if handed_in is None:
            adapter.validate_python(values)
        else:
            adapter.validate_json(json.dumps(values))  # in which a list may be a tuple
    except ValidationError as error:
        return _worded(error.errors(), values, names, prefix=prefix, nested=handed_in is not None)
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


def _foreign_adapter(target: Callable[..., Any], handed_in: Collection[str]) -> tuple[list[str], Any]:
    """Make the validator of a target of others, whose parameters may have defaults, and no or odd annotations."""
    from pydantic import ConfigDict, TypeAdapter, with_config
    from typing_extensions import TypedDict

    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):  # of types that are imported for checkers alone
        hints = {}
    parameters = [*inspect.signature(target).parameters.values()]
    named = [one for one in parameters if one.kind in {one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY}]
    keys = [one for one in named if one.name not in handed_in]
    known = {one.name: _checkable(hints.get(one.name, Any)) for one in keys}
    fields = {one.name: known[one.name] if one.default is one.empty else NotRequired[known[one.name]] for one in keys}
    extra: Any = "allow" if any(one.kind is one.VAR_KEYWORD for one in parameters) else "forbid"
    rules = ConfigDict(strict=True, extra=extra, allow_inf_nan=False, arbitrary_types_allowed=True)
    return [*fields], TypeAdapter(with_config(rules)(TypedDict("schema", fields)))  # type: ignore[misc, operator]


def _checkable(hint: Any) -> Any:
    """Return what pydantic can check of an annotation; all else is left to the target."""
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        TypeAdapter(hint)
    except PydanticUserError:  # a tensor, a class of a library
        return Any
    return hint


def _worded(errors: list[Any], values: dict[str, Any], names: list[str], *, prefix: str, nested: bool) -> list[str]:
    """Word pydantic's errors: one line for each key, with its value and what it should be."""
    lines: dict[str, list[str]] = {}
    for error in errors:
        path, value = _real_path(error["loc"], values)
        if nested and "'_target_': " in repr(value):  # what is built of it is checked by itself
            continue
        key = f"{prefix}{'.'.join(map(str, path))}={value!r}"
        what = error["msg"].replace("Input should", "should")
        if error["type"] == "extra_forbidden":
            what = f"unknown key{suggest(str(path[-1]), names, prefix)}"
        elif error["type"] == "list_type" and isinstance(value, str | int):
            what += f"; write [{value}]"
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
