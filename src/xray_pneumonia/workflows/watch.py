"""Watches a folder for `xray predict watch=true`: new films are answered as they come."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from xray_pneumonia.data.files import find_films, printable

PAUSE = 1.0  # seconds between two looks
log = logging.getLogger(__name__)


def watch(source: Path, answered: dict[str, str], answer: Callable[[], None]) -> NoReturn:
    """Answer new and changed files, each once it has stopped growing, until a signal ends the command.

    `answered` are the `stamps` before the first answers.
    """
    before = answered
    log.info("watches %s until it is stopped; new files are answered", printable(str(source)))
    while True:
        time.sleep(PAUSE)
        now = stamps(source)
        if now == before and not now.items() <= answered.items():
            answer()
            answered = now
        before = now


def stamps(source: Path) -> dict[str, str]:
    """Map the name of each film to what changes with its content."""
    return {file.id: file.stamp for file in find_films(source)}
