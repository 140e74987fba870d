"""Compose the config of a command line with Hydra and run its workflow; Hydra's errors become one line."""

import errno
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryDirectory, gettempdir
from traceback import extract_tb
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xray_pneumonia import extensions
from xray_pneumonia.arguments import LITERAL, prepare, read
from xray_pneumonia.config import PACKAGE, anchor, drop_replaced, groups
from xray_pneumonia.errors import InputError
from xray_pneumonia.keys import Verb
from xray_pneumonia.stored_config import check_experiment
from xray_pneumonia.suggestions import suggest, suggest_choice, suggest_positional, undashed

SQLITE = re.compile(r"sqlite(\+\w+)?:///")  # of an address of a file
REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def launch(verb: str, arguments: list[str], run: Callable[[DictConfig], Any] | None = None) -> Any:
    """Compose the config of a verb with Hydra and run its workflow on it, or `run` instead, once or as a sweep.

    Returns:
        What the (last) run returned.

    Raises:
        InputError: Hydra cannot compose what was asked for.
    """
    if any(argument.startswith("--e") for argument in arguments):  # Hydra completes abbreviated options
        raise InputError("--experimental-rerun unpickles a file, which could run anything; use `xray reproduce`")
    if strange := _unknown_options(arguments):
        raise InputError(f"{strange[0]}: {undashed(verb, strange[0])}; see xray {verb} --help")
    failures: list[BaseException] = []
    returned: list[Any] = [None]
    given, homes = arguments, list[str]()
    arguments, literal = prepare(verb, arguments)

    def task(cfg: DictConfig) -> Any:
        cfg.update(literal)
        homes.append(str(cfg.home))
        returned[0] = _run(run or import_module(f"xray_pneumonia.workflows.{verb}").main, cfg, failures)
        return returned[0]

    _call_hydra(verb, arguments, task, failures)
    if failures:
        home = Path(homes[-1] if homes else Verb(verb).keys["home"].value)  # what composes it may have failed
        if place := extensions.place_of(failures[0]):
            failures[0].add_note(place)
        raise _named(failures[0], verb, [*given, f"home={home.absolute()}"])
    return returned[0]


def _unknown_options(arguments: list[str]) -> list[str]:
    """List the arguments with two dashes that Hydra does not know, also shortened."""
    from hydra._internal.utils import get_args_parser

    known = get_args_parser()._option_string_actions
    dashed = [argument for argument in arguments if argument.startswith("--")]
    return [one for one in dashed if not any(each.startswith(one.partition("=")[0]) for each in known)]


def _call_hydra(
    verb: str, arguments: list[str], task: Callable[[DictConfig], Any], failures: list[BaseException]
) -> None:
    """Let Hydra parse the arguments and call `task`; its errors become one line."""
    import hydra
    from hydra.errors import HydraException

    before = sys.argv
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise to us instead of printing and leaving
    try:
        with _experiment_files(arguments) as arguments:
            sys.argv = ["xray " + verb, *arguments]
            hydra.main(version_base="1.3", config_path=f"pkg://{PACKAGE}", config_name=verb)(task)()
    except HydraException as error:
        raise InputError(_explained(error, verb, arguments)) from error
    except OSError as error:  # the folders of Hydra
        failures.append(error)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{' '.join(arguments)}: a config file cannot be read: {reason}") from error
    except (ValueError, TypeError) as error:
        if not Path(extract_tb(error.__traceback__)[-1].filename).is_relative_to(Path(hydra.__file__).parent):
            raise
        wrong = [word for word in arguments if word.partition("=")[0] in groups() and _no_choice(word)]
        reason = f"names no choice; see xray {verb} --help" if wrong else " ".join(str(error).split())
        raise InputError(f"{' '.join(wrong or arguments)}: {reason}") from error
    finally:
        sys.argv = before


def _no_choice(argument: str) -> bool:
    value = read(argument)
    return value is None or isinstance(value, bool | int | float)


def _run(run: Callable[[DictConfig], Any], cfg: DictConfig, failures: list[BaseException]) -> Any:
    """Run the workflow; outside of a sweep its error goes to `failures`, since Hydra would print about it."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    try:
        if "extensions" in cfg:
            cfg.extensions = extensions.load(cfg.extensions)
            drop_replaced(cfg, overrides())
        anchor(cfg)
        return run(cfg)
    except Exception as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        failures.append(error)


def _named(error: BaseException, verb: str, arguments: list[str]) -> BaseException:
    """Turn an error about a path that the command names, or one above or below it, into one about the user's input."""
    if isinstance(error, OmegaConfBaseException):
        return InputError(f"the config does not resolve: {' '.join(str(error).split())}")
    if not isinstance(error, OSError) or not error.filename:
        return error
    place, choices = Path(os.fsdecode(error.filename)).absolute(), groups()
    for argument in sorted(arguments, key=lambda one: not one.endswith(f"={place}")):  # the place itself comes first
        key, _, value = argument.lstrip("+").partition("=")
        named = Path(os.path.expanduser(SQLITE.sub("", value))).absolute()
        named = named.parent if SQLITE.match(value) and named != place else named
        below = place != named and place.is_relative_to(named) and _misplaced(error, named)
        if value and (key not in choices or key in LITERAL.get(verb, ())) and (below or named.is_relative_to(place)):
            reason = f"{place}: {error.strerror}" if below else error.strerror
            wrong = InputError(f"{key}={value}: cannot be used: {reason}; name another place")
            wrong.__cause__ = error
            return wrong
    return error


def full_disk(arguments: list[str]) -> str:
    """Name the place of a command whose disk is full: the one with the least room."""
    values = [argument.partition("=")[2] for argument in arguments if "=" in argument]
    named = [Path(value).expanduser().absolute() for value in [*values, "."] if "\0" not in value]
    places = [next(each for each in (one, *one.parents) if each.exists()) for one in [*named, Path(gettempdir())]]
    free, place = min((disk_usage(place).free, place) for place in places)
    return f"no space is left on the disk of {place} ({free} bytes free); make room and run the same command again"


def _misplaced(error: OSError, folder: Path) -> bool:
    """Tell whether an error below a folder is the folder's: no rights, or nothing can be made in it."""
    try:
        TemporaryDirectory(dir=folder).cleanup()
    except OSError as second:
        return second.errno != errno.ENOSPC
    return error.errno in REFUSALS


def _explained(error: Exception, verb: str, arguments: list[str]) -> str:
    """Word Hydra's error in one line, with the nearest valid name."""
    from hydra.errors import OverrideParseException

    text = " ".join(str(error).split())
    group = re.search(
        r"Could not find '([\w/]+)/([^/']+)' Available options in '[\w/]+': (.*?) Config search path", text
    )
    if group:
        name, value, options = group.groups()
        near = suggest_choice(name, value, options.split())
        return f"{name}={value}: there is no such choice{near} There are {', '.join(options.split())}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        key = unknown.group(1)
        value = next((a.partition("=")[2] for a in arguments if a.lstrip("+").startswith(f"{key}=")), "")
        known = [*groups(), *Verb(verb, arguments).keys]
        if key in known and key not in groups():
            return f"{key}={value}: a config file or a ~ of the command replaced {key.rpartition('.')[0]}, which has it"
        if key in groups():
            own = [each for each in known if each.startswith(f"{key}.")]
            found = read(f"{key}={value}")
            if own and isinstance(found, dict):
                return f"{key}={value}: is set key by key: {' '.join(f'{key}.{k}={v}' for k, v in found.items())}"
            cure = f"it has {', '.join(own)}" if own else "leave it out"
            return f"{key}={value}: `xray {verb}` chooses no {key}; {cure}"
        return f"{key}={value}: unknown key{suggest(key, known)}"
    if isinstance(error, OverrideParseException):
        quotes = "a value with spaces or other signs than letters stands in quotes of its own: 'key=\"a (b)\"'"
        word = error.override
        cure = quotes if "=" in word else suggest_positional(verb, word, is_path=Path(word).expanduser().exists())
        return f"{word}: cannot be read; {cure}"
    return f"{' '.join(arguments)}: {text}"


@contextmanager
def _experiment_files(arguments: list[str]) -> Iterator[list[str]]:
    """Let `experiment=FILE.yaml` name any file: Hydra reads configs from the folders of its search path alone."""
    with TemporaryDirectory() as folder:
        changed, options = [], []
        for argument in arguments:
            key, _, value = argument.partition("=")
            path = Path(value).expanduser()
            if key == "experiment" and path.suffix in {".yaml", ".yml"}:
                if path.suffix == ".yml" or not path.is_file():
                    raise InputError(f"{argument}: there is no such file; name one that ends in .yaml, or a choice")
                extensions.load(_extensions(arguments))  # its targets may be theirs
                text = path.read_bytes()
                own = [each.partition("=")[2] for each in arguments if each.startswith("--config-dir=")]
                check_experiment(text, origin=f"experiment={value}", folders=[Path(each) for each in own])
                stem = re.sub(r"\W+", "_", path.stem, flags=re.ASCII)
                name = f"{stem}_{hashlib.sha256(text).hexdigest()[:8]}"  # no name of the package
                (Path(folder) / "experiment").mkdir(exist_ok=True)
                (Path(folder) / "experiment" / f"{name}.yaml").write_bytes(text)
                changed.append(f"experiment={name}")
                has_own = any(each.startswith("--config-dir=") for each in arguments)
                options = [f"hydra.searchpath=[file://{folder}]" if has_own else f"--config-dir={folder}"]
            else:
                changed.append(argument)
        yield [*changed, *options]


def _extensions(arguments: list[str]) -> Any:
    """Read the modules that the command line names, before Hydra composes its config."""
    given = [argument for argument in arguments if argument.startswith("extensions=")]
    return read(given[-1]) if given else []


def asked() -> list[str]:
    """List the keys and groups that the running command sets."""
    return [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in overrides()]


def overrides() -> list[str]:
    """List what the running command sets, as it is written: `seed=${mode}` is no key of this list."""
    from hydra.core.hydra_config import HydraConfig

    given: Any = HydraConfig.get().overrides.task if HydraConfig.initialized() else OmegaConf.create([])
    texts: Any = OmegaConf.to_container(given, resolve=False)
    return list(texts)


def choices() -> dict[str, str | None]:
    """List which file each config group of the running command was read from."""
    from hydra.core.hydra_config import HydraConfig

    return dict(HydraConfig.get().runtime.choices) if HydraConfig.initialized() else {}
