"""List the keys, group choices and comments of a verb from its YAML files as text, without any import that takes time.

A comment that begins with `hidden:` keeps a key out of help and completion: it stands in stored configs, or the program
fills it in.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import pairwise
from pathlib import Path

PACKAGE = "xray_pneumonia.conf"
LINE = re.compile(r"( *)(\w+):(.*?)(?:\s+# (.*))?$")  # indentation, key, value, comment
DEFAULT = re.compile(r"  - (?:override )?/?(\w+)(?:: (\S+))?(?:\s+# (.*))?$")
FLOW = re.compile(r"\{\w+: [^][{},]+(, \w+: [^][{},]+)*\}")  # {lr: 1e-3, beta2: 0.99}
MORE = re.compile(r" +# (.*)$")  # a comment that goes on
HIDDEN = "hidden:"
RENAMED = "# Renamed"  # the first words of a file that keeps an old name


@dataclass(frozen=True)
class Key:
    """A key with its value and comment as they are written."""

    value: str
    comment: str

    def changed_to(self, other: "Key") -> "Key":
        """Take the value that a file above sets; its comment too, where it has one."""
        return other if other.comment else replace(other, comment=self.comment)


@dataclass(frozen=True)
class Group:
    """A group of a verb: its file, its comment, the names of its files."""

    chosen: str
    comment: str
    choices: list[str]


@dataclass(frozen=True)
class Verb:
    """The keys of a verb."""

    name: str
    arguments: Sequence[str] = ()  # of the command line, for the groups that they choose and the folder that they add

    @cached_property
    def _folders(self) -> list[Traversable]:
        words = [word for argument in self.arguments for word in argument.split("=", 1)]
        own = [after for word, after in pairwise(words) if word in ("--config-dir", "-cd")]
        return [*(Path(folder).expanduser() for folder in own), resources.files(PACKAGE)]

    @cached_property
    def groups(self) -> dict[str, Group]:
        """The groups that the verb chooses from."""
        asked = dict(argument.split("=", 1) for argument in self.arguments if "=" in argument)
        found = {}
        for name, default, comment in _defaults(self._text(self.name)):
            if default:
                choices = self._choices(name)
                chosen = asked.get(name, "") if asked.get(name) in choices else default
                found[name] = Group(chosen, comment, choices)
        return found

    @cached_property
    def keys(self) -> dict[str, Key]:
        """All keys of the verb by their dotted names: its own, then those of the groups."""
        found = dict(_keys(self._text("command"))) | dict(_keys(self._text(self.name)))
        for name, group in self.groups.items():
            if group.chosen != "null" and name != "experiment":
                for key, known in self._of_group(name, group.chosen).items():
                    found[f"{name}.{key}"] = known.changed_to(found.pop(f"{name}.{key}", known))
        return {key: known for key, known in found.items() if not known.comment.startswith(HIDDEN)}

    @property
    def header(self) -> list[str]:
        """The comment at the top of the verb's file."""
        lines = self._text(self.name).splitlines()
        return [line[2:] for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")]]

    def _of_group(self, group: str, choice: str) -> dict[str, Key]:
        text = self._text(f"{group}/{choice}")
        below = [
            self._of_group(group, name) for name, default, _ in _defaults(text) if name != "_self_" and not default
        ]
        found: dict[str, Key] = {}
        for key, known in (item for part in [*below, dict(_keys(text))] for item in part.items()):
            found[key] = found.get(key, known).changed_to(known)
        return found

    def _text(self, name: str) -> str:
        files = [folder.joinpath(f"{name}.yaml") for folder in self._folders]
        return next((file.read_text("utf-8") for file in files if file.is_file()), "")

    def _choices(self, group: str) -> list[str]:
        found = set()
        for folder in (folder.joinpath(group) for folder in self._folders):
            for file in folder.iterdir() if folder.is_dir() else ():
                if file.name.endswith(".yaml") and RENAMED not in file.read_text("utf-8"):
                    found.add(file.name.removesuffix(".yaml"))
        return sorted(found)


def _defaults(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, choice and comment of each entry of a defaults list, but those of Hydra itself."""
    flow = re.search(r"^defaults: \[(.*)\]", text, re.MULTILINE)
    block = re.search(r"^defaults:\n((?:  - .*\n)*)", text, re.MULTILINE)
    lines = [f"  - {name.strip()}" for name in flow[1].split(",")] if flow else block[1].splitlines() if block else []
    for line in lines:
        if entry := DEFAULT.match(line):
            yield entry[1], entry[2] or "", entry[3] or ""


def _keys(text: str) -> Iterator[tuple[str, Key]]:
    """Yield the dotted leaves of a YAML file of ours, in their order."""
    parents: list[tuple[int, str]] = []
    last: tuple[str, Key] | None = None
    for line in text.splitlines():
        more, key = MORE.match(line), LINE.match(line)
        if last and more:
            last = last[0], replace(last[1], comment=f"{last[1].comment} {more[1]}")
        elif key:
            if last:
                yield last
            parents = [parent for parent in parents if parent[0] < len(key[1])]
            name, last = ".".join([*(name for _, name in parents), key[2]]), None
            value = key[3].strip()
            if FLOW.fullmatch(value) and not name.startswith("hydra"):
                pairs = (pair.split(": ") for pair in value[1:-1].split(", "))
                yield from ((f"{name}.{inner}", Key(text, key[4] or "")) for inner, text in pairs)
            elif value:
                last = name, Key(value, key[4] or "")
            else:
                parents.append((len(key[1]), key[2]))
            if name.startswith("hydra") or name.endswith("_target_"):
                last = None
    if last:
        yield last
