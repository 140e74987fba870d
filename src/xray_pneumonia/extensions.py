"""Load a user's own modules, which the command names; what a stored config or a bundle names is never imported.

A command names modules with `extensions=[my_models]`; installed packages may name theirs in the entry points
`xray_pneumonia.extensions`. Their public classes and functions may then stand in the command's config.
"""

import ast
import hashlib
import importlib
import inspect
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf

from xray_pneumonia.errors import InputError

GROUP = "xray_pneumonia.extensions"  # of entry points
FOLDERS = {"site-packages", "dist-packages"}  # in which what a module imports from next to it is not its own
MODULE = re.compile(r"[A-Za-z_][\w.]{0,99}", re.ASCII)
MOST = 20  # modules
log = logging.getLogger(__name__)


class CodeChanged(InputError):
    """A module of the user's own is no longer what a run or bundle records (exit code 2)."""


@dataclass(frozen=True)
class Extension:
    """A module that a command named."""

    module: ModuleType
    root: Path  # the folder below which it and what it imports lie
    sources: Mapping[str, bytes]  # of the module and of its own that it imports, by path below `root`

    @property
    def name(self) -> str:
        """The module's name, which targets begin with."""
        return self.module.__name__

    @cached_property
    def sha256(self) -> str:
        """The hash of all sources, 64 hex digits."""
        parts = (f"{path}\n{len(text)}\n".encode() + text for path, text in sorted(self.sources.items()))
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def find(self, module: str, attribute: str) -> Callable[..., Any] | None:
        """Find a public class or function that is defined in the sources, or that the module lists in `__all__`."""
        owner = sys.modules.get(module)
        found = getattr(owner, attribute, None)
        if attribute.startswith("_") or not (inspect.isclass(found) or inspect.isfunction(found)):
            return None
        home = getattr(sys.modules.get(found.__module__), "__file__", None) or ""
        own = any(Path(home) == self.root / path for path in self.sources)
        return found if own or attribute in getattr(owner, "__all__", ()) else None

    def targets(self) -> list[str]:
        """List what a config may name."""
        return [f"{self.name}.{each}" for each in dir(self.module) if self.find(self.name, each)]


_active: dict[str, Extension] = {}  # of the command that runs
_known: dict[str, Extension] = {}  # of this process
_added: list[str] = []  # to sys.path


def load(names: Any) -> dict[str, str]:
    """Import the modules that a command names; they replace those of an earlier command of this process.

    Args:
        names: of modules on the path or in the current folder, or `.py` files.

    Returns:
        The name and hash of each.

    Raises:
        InputError: there is no such module, it cannot be imported, or another one has its name.
    """
    names = OmegaConf.to_object(names) if OmegaConf.is_config(names) else names
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"extensions={names!r}: should be a list of modules or .py files: extensions=[my_models]")
    _active.clear()
    while _added:
        sys.path.remove(_added.pop())
    for name in [*(point.value for point in entry_points(group=GROUP)), *names]:
        extension = _load(name)
        _active[extension.name] = extension
        log.info("extension %s, sha256 %s: %s", name, extension.sha256[:12], extension.module.__file__)
    return {name: extension.sha256 for name, extension in _active.items()}


def find(target: str) -> Callable[..., Any] | None:
    """Find what a target of a config names in the modules of this command; imports nothing."""
    module, _, attribute = target.rpartition(".")
    extension = owner(target)
    return extension.find(module, attribute) if extension else None


def owner(target: str) -> Extension | None:
    """Find the module of this command that a target belongs to."""
    return next((one for name, one in _active.items() if target.startswith(f"{name}.")), None)


def targets() -> list[str]:
    """List what the modules of this command add to the targets of configs."""
    return [target for extension in _active.values() for target in extension.targets()]


def sources() -> dict[str, bytes]:
    """Return the sources of all modules of this command, by path."""
    return {path: text for extension in _active.values() for path, text in extension.sources.items()}


def place_of(error: BaseException) -> str:
    """Name the line in the modules of this command where an error, or what caused it, came up; empty for none."""
    files = {str((one.root / path).resolve()) for one in _active.values() for path in one.sources}
    frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
    own = [frame for frame in frames if str(Path(frame.filename).resolve()) in files]
    return f"in {own[-1].filename}, line {own[-1].lineno}" if own else ""


def missing(names: Mapping[str, str]) -> list[str]:
    """List those of the modules recorded with a run or bundle that this command does not name."""
    return [name for name in names if name not in _active]


def require(names: Any, *, origin: str) -> None:
    """Require that the command names the modules of the user's own that a run or bundle records, unchanged.

    Raises:
        CodeChanged: a module has another source.
        InputError: the command does not name one of them, or these are no names.
    """
    if not names:
        return
    known = isinstance(names, dict) and all(isinstance(part, str) for item in names.items() for part in item)
    if not known or len(names) > MOST or not all(map(MODULE.fullmatch, names)):
        raise InputError(f"{origin}: extensions: are no names of modules with their hashes")
    if missing(names):
        raise InputError(
            f"{origin}: was trained with code of your own, which is not imported because a stored config names it; "
            f"add extensions=[{','.join(names)}] to the command"
        )
    now = {name: _active[name].sha256 for name in names}
    lines = [
        f"{name}: sha256 {names[name][:12]} then, {now[name][:12]} now" for name in names if now[name] != names[name]
    ]
    if lines:
        raise CodeChanged(f"{origin}: code of your own has changed since; bring it back: {'; '.join(lines)}")


def _load(given: str) -> Extension:
    file = Path(given).expanduser().resolve() if given.endswith(".py") else None
    folder, name = (file.parent, file.stem) if file else (Path.cwd(), given)
    top = name.partition(".")[0]
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError(f"extensions=[{given}]: {name!r} is no name of a module: letters, digits and _")
    if top in sys.stdlib_module_names or top == "xray_pneumonia":
        raise InputError(f"extensions=[{given}]: {top} is a module of Python or of this package; rename yours")
    places = [file] if file else [folder / f"{top}.py", folder / top / "__init__.py"]
    expected = next((place for place in places if place.is_file()), None)
    if file and not expected:
        raise InputError(f"extensions=[{given}]: no such file: {file}")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # behind the rest: nothing that libraries import is replaced
        _added.append(str(folder))
    _forget_if_stale(name, expected)
    spec = find_spec(top)
    if spec is None:
        raise InputError(f"extensions=[{given}]: there is no module {top}, neither installed nor in {folder}")
    if expected and Path(spec.origin or "").resolve() != expected.resolve():
        raise InputError(
            f"extensions=[{given}]: two modules are called {top}: {expected} and {spec.origin}; rename yours"
        )
    return _imported(given, name)


def _forget_if_stale(name: str, expected: Path | None) -> None:
    """Have a module imported anew that was edited since, or that an earlier command took from another folder."""
    importlib.invalidate_caches()
    known = _known.get(name)
    if known is None:
        return
    files = {known.root / path: text for path, text in known.sources.items()}
    if expected in {None, *files} and all(file.is_file() and file.read_bytes() == files[file] for file in files):
        return
    for other, module in [*sys.modules.items()]:
        if getattr(module, "__file__", None) and Path(str(module.__file__)) in files:
            del sys.modules[other]


def _imported(given: str, name: str) -> Extension:
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # it is told from its source by seconds alone
    try:
        module = importlib.import_module(name)
    except Exception as error:  # whatever its code raises
        raise InputError(f"extensions=[{given}]: cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.dont_write_bytecode = before
    if not module.__file__:
        raise InputError(f"extensions=[{given}]: is a folder without __init__.py; name a module in it")
    file = Path(module.__file__)
    root = file.parents[name.count(".") + (file.name == "__init__.py")]
    _known[name] = Extension(module, root, _read_sources(file, root, name.partition(".")[0]))
    return _known[name]


def _read_sources(file: Path, root: Path, top: str) -> dict[str, bytes]:
    """Read the source of a module and of its own that it imports: from its package, or from the folder it lies in."""
    found: dict[str, bytes] = {}
    waiting = [file]
    within = root / top if FOLDERS & set(root.parts) else root
    while waiting:
        file = waiting.pop()
        path = str(file.relative_to(root))
        if path not in found:
            found[path] = file.read_bytes()
            if file.suffix == ".py":
                waiting += [each for each in _imports(file, found[path], root) if each.is_relative_to(within)]
    return found


def _imports(file: Path, source: bytes, root: Path) -> Iterator[Path]:
    """Yield the files below `root` that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names, base = [alias.name for alias in node.names], root
        elif isinstance(node, ast.ImportFrom):
            base = file.parents[node.level - 1] if node.level else root
            names = [f"{node.module or ''}.{alias.name}".strip(".") for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            for length in range(1, len(parts) + 1):
                place = base.joinpath(*parts[:length])
                yield from (one for one in (place.with_suffix(".py"), place / "__init__.py") if one.is_file())
