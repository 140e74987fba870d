"""Define the binary question asked of the images: which class names are label 0 (negative) and label 1 (positive)."""

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from xray_pneumonia.errors import InputError
from xray_pneumonia.types import CLASSES, Classes

WHOLE = re.compile(r"(\d+)(?:\.0*)?")
ALIKE = 0.75  # what a name that no image has may be a misspelling of
CLOSE = 0.9  # a name so like one that is listed is a misspelling, not another class
SHOWN = 5  # classes in a message
RESERVED = "look closer"  # the answer of a model that abstains
UNCERTAIN = "?"  # ends the name of a finding that is only suspected, which is no class


@dataclass(frozen=True)
class Question:
    """The class names of either side; names are compared without regard to case."""

    negative: tuple[str, ...] = CLASSES[:1]
    positive: tuple[str, ...] = CLASSES[1:]

    @classmethod
    def of(cls, negative: Sequence[str | int], positive: Sequence[str | int]) -> "Question":
        """Take the values of `data.negative` and `data.positive`.

        Raises:
            InputError: a side is empty, a name stands on both, or the public classes are swapped.
        """
        sides = [[str(name).strip() for name in side] for side in (negative, positive)]
        keys = [{_key(name) for name in side} for side in sides]
        said = f"data.negative={sides[0]} data.positive={sides[1]}"
        if not all(keys) or keys[0] & keys[1]:
            raise InputError(f"{said}: each needs a class, and no class stands in both")
        if {"", RESERVED} & (keys[0] | keys[1]) or not all(name.isprintable() for side in sides for name in side):
            raise InputError(f"{said}: a class needs a printable name, other than {RESERVED!r}")
        if "normal" in keys[1] and "pneumonia" in keys[0]:
            raise InputError(f"{said}: {CLASSES[1]} is positive and {CLASSES[0]} negative; swap them")
        return cls(tuple(sides[0]), tuple(sides[1]))

    @property
    def names(self) -> Classes:
        """What the classes are called, by label; numbers name a class only where it has no other name."""
        negative, positive = (
            " or ".join([name for name in side if not name.isdecimal()] or side)
            for side in (self.negative, self.positive)
        )
        return negative, positive

    @property
    def public(self) -> bool:
        """Tell whether it is the question of the public data set."""
        return tuple(name.casefold() for name in self.names) == tuple(name.casefold() for name in CLASSES)

    @cached_property
    def _listed(self) -> dict[str, tuple[int, str]]:
        known = {_key(name): (label, name) for label in (0, 1) for name in (self.negative, self.positive)[label]}
        return ({"0": (0, "0"), "1": (1, "1")} if self.public else {}) | known

    def match(self, names: Iterable[str]) -> tuple[int, str] | None:
        """Find the label of an image that has these names, and which of them gave it; None for neither or both."""
        found = [self._listed[_key(name)] for name in names if _key(name) in self._listed]
        return found[0] if len({label for label, _ in found}) == 1 else None

    def answered_by(self, names: Iterable[str]) -> bool:
        """Tell whether these names hold both classes."""
        return {self._listed[_key(name)][0] for name in names if _key(name) in self._listed} == {0, 1}

    def doubt(self, name: str) -> str:
        """Say why a name that matches nothing is no other class but a mistake; empty where it may be one."""
        key = _key(name)
        if key in self._listed or key.endswith(UNCERTAIN):
            return ""
        if key.isdecimal() and not any(known.isdecimal() for known in (*self.negative, *self.positive)):
            one = " and ".join(self.names)
            how = "" if self.public else f"; to read 0 and 1 as {one}, add them to data.negative and data.positive"
            return f"label is {'0, 1, ' if self.public else ''}{' or '.join(self.names)}{how}"
        near = difflib.get_close_matches(key, self._listed, n=1, cutoff=CLOSE)
        return f"label is {' or '.join(self.names)}; did you mean {self._listed[near[0]][1]}?" if near else ""

    def unused(self, used: Collection[str], left_out: Iterable[str], *, where: str) -> list[str]:
        """List the names that no image has; a number that stands for a side needs no images of its names.

        Raises:
            InputError: a class that is left out is so like one of them that one of the two is misspelt.
        """
        if any(name.isdecimal() for name in used):
            return []
        unused = [name for name in (*self.negative, *self.positive) if name not in used and not name.isdecimal()]
        others = [_key(name) for name in left_out if not name.endswith(UNCERTAIN)]
        for name in unused:
            if near := difflib.get_close_matches(_key(name), others, n=1, cutoff=ALIKE):
                raise InputError(
                    f"{where}: no image is called {name!r}, and those called {near[0]!r} would be left out; did you "
                    "mean that class? Correct the name in data.positive or data.negative, or drop it there"
                )
        return unused

    def __str__(self) -> str:
        """Word it."""
        return f"{self.names[1]} (positive) against {self.names[0]}"


PUBLIC = Question()


def counted(counts: Mapping[Any, int]) -> str:
    """Word counts of classes, the largest first."""
    shown = [f"{count} {name}" for name, count in Counter(counts).most_common(SHOWN)]
    more = [f"{len(counts) - SHOWN} more kinds"] if len(counts) > SHOWN else []
    return ", ".join(shown + more)


def _key(name: str) -> str:
    number = WHOLE.fullmatch(name)
    return str(int(number.group(1))) if number else name.casefold()
