"""Honest, reproducible classification of chest X-rays into NORMAL and PNEUMONIA.

import xray_pneumonia as xray

model = xray.load("final")
answer = model.predict("film.dcm")
run = xray.train("experiment=forkme", "data.root=DIR")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xray_pneumonia.api import Answer as Answer
    from xray_pneumonia.api import Model as Model
    from xray_pneumonia.api import Run as Run
    from xray_pneumonia.api import load as load
    from xray_pneumonia.api import train as train

__version__ = "0.1.0"
__all__ = ["Answer", "Model", "Run", "load", "train"]


def __getattr__(name: str) -> Any:
    """Import what notebooks use when they ask for it: torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from xray_pneumonia import api

    return getattr(api, name)
