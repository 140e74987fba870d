"""`sweep.trial`: the ticket by which a job knows that its training is the trial of a sweep."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

from xray_pneumonia.errors import InputError

if TYPE_CHECKING:
    from xray_pneumonia.sweeps.trial import Trial


@dataclass(frozen=True)
class Ticket:
    """What the sweeper hands to a job: `sweep.trial`."""

    id: int
    number: int
    study: str
    parent: str
    objectives: dict[str, str]
    point: dict[str, Any]


def take_trial(cfg: DictConfig) -> "Trial | None":
    """Take the sweep's keys out of a config: what is left is one training, the same with or without a sweep.

    Raises:
        InputError: a search was asked for without `-m`.
    """
    with open_dict(cfg):
        node = cfg.pop("sweep", None)
        cfg.pop("workers", None)
    if node is None:
        return None
    if node.trial is None:
        if node.space or node.seeds or node.folds:
            raise InputError("sweep: a sweep needs -m: xray train -m sweep=...")
        return None
    # Optuna comes with them, which a training of its own does without.
    from xray_pneumonia.sweeps.plan import read_settings
    from xray_pneumonia.sweeps.trial import Trial

    settings = read_settings(OmegaConf.create({"sweep": node}))
    return Trial(settings, Ticket(**settings.trial or {}), cfg)
