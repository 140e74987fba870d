"""Trials in the hands of a Hydra launcher, and how long to wait for what it gives back."""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from hydra.plugins.launcher import Launcher

from xray_pneumonia.sweeps.study import Claim, SweepStudy

POLL = 1.0  # seconds between two looks
logging.getLogger("submitit").setLevel(logging.ERROR)  # it warns each time it asks a Slurm without accounting
log = logging.getLogger(__name__)
PATIENCE = 10  # seconds that the jobs have to close


def launch(launcher: Launcher, lines: Sequence[Sequence[str]], claims: list[Claim], study: SweepStudy) -> None:
    """Run trials; returns when each of them has ended, whatever became of its job.

    A launcher of a cluster waits for a cancelled job for ever, so the study says when the waiting is over: the
    trials tell it themselves, and those whose processes are gone are buried.

    Args:
        launcher: of Hydra.
        lines: the overrides of each trial.
        claims: the trials.
        study: that they belong to.
    """
    if type(launcher).__module__.startswith("hydra._internal"):  # this very process
        returns = launcher.launch(lines, claims[0].number)
        _settle(claims, returns, study)
        return
    box: list[Any] = []
    thread = threading.Thread(target=_into, args=(box, launcher, lines, claims[0].number), daemon=True)
    thread.start()
    while thread.is_alive() and study.unfinished(claims):
        time.sleep(POLL)
        study.bury()
    if thread.is_alive() and not study.unfinished(claims):
        thread.join(timeout=PATIENCE)  # the jobs are closing
    returned = box[0] if box else [None] * len(claims)
    if isinstance(returned, BaseException):
        if not isinstance(returned, Exception) or not study.begun(claims):  # the launcher itself is broken
            raise returned
        log.warning("the launcher lost its jobs: %s", returned)
        returned = [None] * len(claims)
    _settle(claims, returned, study)


def _into(box: list[Any], launcher: Launcher, lines: Sequence[Sequence[str]], first: int) -> None:
    try:
        box.append(launcher.launch(lines, first))
    except BaseException as error:
        box.append(error)


def _settle(claims: list[Claim], returns: Sequence[Any], study: SweepStudy) -> None:
    """Fail what no job has told the study about."""
    open_ = {claim.number for claim in study.unfinished(claims)}
    for claim, done in zip(claims, returns, strict=True):
        if claim.number in open_:
            said = "its job is gone" if done is None else f"{done.status}: {done._return_value!r}"
            study.fail(claim, f"the launcher lost it; {said}")
