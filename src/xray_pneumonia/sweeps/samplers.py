"""Samplers and pruners by their names in the configs."""

import warnings

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from xray_pneumonia.sweeps.settings import SweepSettings


def build_sampler(settings: SweepSettings, *, kind: str, number: int) -> BaseSampler:
    """Make the sampler of one trial.

    Its seed depends on the trial's number, so a search that was interrupted does not repeat its first draws.

    Args:
        settings: the config group `sweep`.
        kind: the sampler, where the settings say `auto`.
        number: of the trial.
    """
    seed = (settings.seed * 1_000_003 + number) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if kind == "tpe":
            # Together, for parameters depend on each other; grouped, for conditions leave some out; and
            # constant_liar keeps several workers from trying the same point at once.
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
        if kind == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        if kind == "qmc":  # its points depend on one seed together
            return optuna.samplers.QMCSampler(seed=settings.seed, scramble=True, warn_independent_sampling=False)
        return optuna.samplers.RandomSampler(seed=seed)


def build_pruner(settings: SweepSettings, *, max_epochs: int) -> BasePruner:
    """Make the pruner.

    Args:
        settings: the config group `sweep`.
        max_epochs: of a trial.
    """
    least = settings.prune_after_epochs
    if settings.pruner == "median":
        return optuna.pruners.MedianPruner(settings.prune_after_trials, n_warmup_steps=least)
    if settings.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=3)
    if settings.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=least, max_resource=max_epochs, reduction_factor=3)
    return optuna.pruners.NopPruner()
