"""Define the shared types: arrays, class names, and numbers with a range, which `config.check` enforces."""

import os
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Gt, Interval, Le, MinLen

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of one
CLASSES = ("NORMAL", "PNEUMONIA")  # the position is the label
Classes = tuple[str, str]  # the names of labels 0 and 1 of a model

Gray = npt.NDArray[np.uint8]  # images (..., H, W), 0 is black
Vector = npt.NDArray[np.float64]

Positive = Annotated[float, Gt(0), Le(1e6)]
NonNegative = Annotated[float, Ge(0), Le(1e6)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
OpenFraction = Annotated[float, Interval(gt=0, lt=1)]
BelowOne = Annotated[float, Interval(ge=0, lt=1)]
Degrees = Annotated[float, Interval(ge=0, le=180)]
Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
PROCESSORS = os.cpu_count() or 1
MOST_PROCESSES = max(32, 4 * PROCESSORS)
Workers = Annotated[int, Interval(ge=0, le=MOST_PROCESSES)]  # processes; more than a machine has only wait
Processes = Annotated[int, Interval(ge=1, le=MOST_PROCESSES)]
Port = Annotated[int, Interval(ge=0, le=65535)]  # 0: a free one
Text = Annotated[str, MinLen(1)]  # a name, path or address
Seed = Annotated[int, Interval(ge=0, lt=2**32)]
Side = Annotated[int, Interval(ge=16, le=2048)]
Stages = Annotated[int, Interval(ge=1, le=12)]  # each halves the side; the largest has one pixel left
Stage = Literal["train", "val", "test", "shift"]


def spoken(name: str) -> str:
    """Write a class name in a sentence or an answer: the public ones in small letters, others as they are given."""
    return name.lower() if name in CLASSES else name


def csv_safe(text: str) -> str:
    """Quote a text that a spreadsheet would take for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text
