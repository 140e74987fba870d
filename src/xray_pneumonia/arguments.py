"""Prepare the arguments of a command for Hydra: what holds a path, a name or an address is taken as it is written."""

import re
from pathlib import Path
from typing import Any

from xray_pneumonia.config import OPEN

# Keys that hold a path or a name, as they are: Hydra would take `image (1).png` for a call, and `model` for the group.
LITERAL = {
    "adapt": ("model", "labels"),
    "evaluate": ("model", "run_id", "compare_to"),
    "export": ("model", "run_id", "input", "output"),
    "index": ("source", "output"),
    "predict": ("model", "input", "output"),
    "register": ("run_id", "name", "alias"),
    "reproduce": ("model", "run_id"),
    "train": ("resume",),
    "serve": ("model", "keep", "audit", "host"),
}
# Paths, names and addresses of every verb, taken as they are but for Hydra's quotes and `${...}`.
PLACES = (
    "data.root", "home", "data.cache_dir", "tracking.run_name", "tracking.experiment_name", "tracking.uri", "output",
    "sweep.storage", "sweep.name", "storage", "experiment_name", "sweep_name", "model.init_from", "data.corrections",
    "target", "dataset", "extensions", "dicom.folder", "dicom.ae_title", "dicom.reply_to", "operating_point",
    "evaluation.operating_point", "data.patient", "patient",
)  # fmt: skip
SWEPT = ("data.root", "data.cache_dir", "evaluation.operating_point")  # commas separate values; not in an existing path
RUNS = ("run_id", "run_ids", "compare_to", "evaluation.out_of_fold")  # eight digits of an id look like a number
LISTS = (
    *RUNS, "extensions", "data.positive", "data.negative", "trainer.freeze", "evaluation.subgroups", "sweep.shifts",
    "modalities", "views", "body_parts", "allowed_hosts", "dicom.allow",
)  # fmt: skip
LISTED = re.compile(r"[^\[\],\s](?:[^\[\],]|\[[^\[\],]*\])*")


def prepare(verb: str, arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Make the arguments that Hydra parses, and the keys and values that it must not."""
    arguments, literal = literally(verb, _added(_config_dir_first(arguments)))
    return [quoted(argument) for argument in arguments], literal


def _config_dir_first(arguments: list[str]) -> list[str]:
    """Put `--config-dir DIR` first: Hydra reads no overrides on both sides of an option."""
    found, rest = [], [*arguments]
    for name in ("--config-dir", "-cd"):
        while name in rest[:-1]:
            place = rest.index(name)
            found, rest = [f"--config-dir={rest[place + 1]}"], rest[:place] + rest[place + 2 :]
    joined = [argument for argument in rest if argument.startswith("--config-dir=")]
    return [*(found or joined[-1:]), *(argument for argument in rest if argument not in joined)]


def _added(arguments: list[str]) -> list[str]:
    """Let the command set any key of a class that it names itself (`model._target_=my_models.Net model.depth=3`)."""
    named = {argument.partition("._target_=")[0] for argument in arguments if "._target_=" in argument}
    free = {f"{group}." for group in named & {*OPEN}}
    return [f"++{word.lstrip('+')}" if word.lstrip("+").startswith((*free,)) else word for word in arguments]


def literally(verb: str, arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Separate the arguments that Hydra's grammar must not parse."""
    parts = [(argument, *argument.lstrip("+").partition("=")) for argument in arguments]
    known = LITERAL.get(verb, ())
    literal = {key: text for _, key, sign, text in parts if sign and key in known and not _in_grammar(text)}
    return [argument for argument, key, _, _ in parts if key not in literal], literal


def _in_grammar(text: str) -> bool:
    return text.startswith("[") or text == "null"


def quoted(argument: str) -> str:
    """Quote text that Hydra's grammar would take for something else: 2024_01, images (1), [größe]."""
    written, _, value = argument.partition("=")
    key = written.lstrip("+")
    if key in LISTS and value.startswith("["):
        found = None if key in RUNS else read(argument)
        as_written = isinstance(found, list) and ",".join(map(str, found)) == value[1:-1].replace(", ", ",")
        if as_written or {"'", '"'} & set(value):
            return argument
        return f"{written}={LISTED.sub(lambda word: _in_quotes(word.group().rstrip()), value)}"
    if key not in PLACES or value in ("", "null"):
        return argument
    if value[0] in "'\"" or "${" in value or "\n" in value or _lists(key, value):
        return argument
    return argument if read(argument) == value else f"{written}={_in_quotes(value)}"


def read(argument: str) -> Any:
    """Read the value of an argument as Hydra's grammar does; None where it cannot."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(argument).value()
    except HydraException:
        return None


def _in_quotes(text: str) -> str:
    escaped = re.sub(r'(\\*)(?="|$)', r"\1\1", text).replace('"', r"\"")
    return f'"{escaped}"'


def _lists(key: str, value: str) -> bool:
    """Tell whether commas separate the values of a sweep."""
    return key in SWEPT and "," in value and not Path(value).exists()
