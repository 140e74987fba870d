"""The story of `-m`: plan, open the study, run its trials, record what came out."""

import logging
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial, TrialState

from xray_pneumonia.config import build, check
from xray_pneumonia.errors import InputError
from xray_pneumonia.sweeps import launches, workers
from xray_pneumonia.sweeps import plan as plans
from xray_pneumonia.sweeps.composing import WarmLoader
from xray_pneumonia.sweeps.parent_run import end_forgotten, open_parent
from xray_pneumonia.sweeps.plan import Plan
from xray_pneumonia.sweeps.progress import Progress
from xray_pneumonia.sweeps.space import overrides
from xray_pneumonia.sweeps.storage import open_storage, resolve
from xray_pneumonia.sweeps.study import DONE, Claim, SweepStudy
from xray_pneumonia.sweeps.trial import decode
from xray_pneumonia.tracking import stored_runs
from xray_pneumonia.tracking.store import Store, open_store

POLL = 1.0  # seconds between two looks at what others do
log = logging.getLogger(__name__)
for launcher in ("hydra._internal.core_plugins.basic_launcher", "hydra_plugins.hydra_joblib_launcher"):
    logging.getLogger(launcher).setLevel(logging.WARNING)  # our own line for each trial is shorter


class SweepFailed(Exception):
    """More trials failed than the sweep bears (exit code 1)."""


@dataclass(frozen=True)
class Sweep:
    """A multirun: what is planned, and what Hydra lent for it."""

    plan: Plan
    config: DictConfig
    context: HydraContext
    task: TaskFunction

    def compose(self, lines: Sequence[str]) -> DictConfig:
        """Let Hydra compose the config of a trial."""
        return self.context.config_loader.load_sweep_config(self.config, list(lines))

    def lines(self, claim: Claim, *, parent: str) -> list[str]:
        """Word a trial as overrides."""
        ticket = {
            "id": claim.trial_id,
            "number": claim.number,
            "study": self.plan.name,
            "parent": parent,
            "objectives": self.plan.objectives,
            "point": claim.point,
        }
        return [*self.shared(), *overrides(claim.point), f"++sweep.trial={_flow(ticket)}"]

    def shared(self) -> list[str]:
        """List the overrides that all trials share."""
        return [*self.plan.carried, *(f"{key}={value}" for key, value in self.plan.space.fixed.items())]


def run(config: DictConfig, arguments: Sequence[str], *, context: HydraContext, task: TaskFunction) -> float | None:
    """Run a sweep, or go on with one.

    Returns:
        The best value of the first objective; None in a worker.

    Raises:
        InputError: the space, the database or every trial's input is wrong.
        SweepFailed: more trials failed than `sweep.max_failures`.
    """
    choice = str(config.hydra.runtime.choices.get("sweep", "default"))
    sweep = Sweep(plans.read(config, arguments, choice=choice), config, context, task)
    home = Path(str(config.home)).expanduser().resolve()
    _require_composable(sweep)
    tracking = build(config.tracking)
    storage = open_storage(resolve(sweep.plan.settings.storage, home))
    store = open_store(tracking, home=home)
    role = workers.role()
    study = SweepStudy(
        sweep.plan, storage, session=role.session if role else uuid.uuid4().hex, inquest=lambda t: _inquest(store, t)
    )
    if role:
        _work(sweep, study, parent=role.parent, progress=None)
        return None
    return _lead(sweep, study, store)


def _lead(sweep: Sweep, study: SweepStudy, store: Store) -> float:
    """Keep the parent run, run the trials or have them run, and record the end.

    While another command leads, work along; when that is done or dead, lead.
    """
    plan = sweep.plan
    with ExitStack() as stack:
        said = ""
        while isinstance(parent := open_parent(plan, study, store, stack), stored_runs.StoredRun):
            does = "works along" if study.room() > 0 else "waits for its end"
            if does != said:
                log.info("sweep %s: pid %s leads it; this process %s", plan.name, parent.tags.get("pid", "?"), does)
                said = does
            _train(sweep, study, parent=parent.run_id, progress=None)
            time.sleep(POLL)
        study.bury()
        progress = Progress(plan, study, parent)
        log.info("sweep %s: %d of %d trials to go", plan.name, max(0, study.room()), plan.n_trials)
        _train(sweep, study, parent=parent.run_id, progress=progress)
        _wait(study, progress)
        end_forgotten(store, study, parent, name=plan.name)
        progress.conclude(arguments=sweep.shared())
        _require_success(plan, study)
    progress.print(store)
    return progress.best()


def _train(sweep: Sweep, study: SweepStudy, *, parent: str, progress: Progress | None) -> None:
    count = int(sweep.config.workers)
    if study.room() > 0 and count > 1:
        with workers.started(count, parent=parent, session=study.session) as team:
            _wait(study, progress, team=team)
    _work(sweep, study, parent=parent, progress=progress)


def _work(sweep: Sweep, study: SweepStudy, *, parent: str, progress: Progress | None) -> None:
    """Take trials and run them, until none is left to take."""
    context = sweep.context
    if str(sweep.config.hydra.launcher._target_).startswith("hydra._internal"):  # others send it to processes
        loader: Any = WarmLoader(context.config_loader)
        context = HydraContext(config_loader=loader, callbacks=context.callbacks)
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=sweep.task, config=sweep.config
    )
    batch = sweep.plan.settings.parallel or workers.capacity(sweep.config.hydra.launcher)
    while not workers.orphaned() and (claims := study.claim(batch)):
        for claim in claims:
            log.info("trial %d: %s", claim.number, " ".join(overrides(claim.point)))
        lines = [sweep.lines(claim, parent=parent) for claim in claims]
        try:
            launches.launch(launcher, lines, claims, study)
        except HydraException as error:
            for claim in claims:
                study.fail(claim, f"{type(error).__name__}: {' '.join(str(error).split())}")
        if progress:
            progress.update()


def _wait(study: SweepStudy, progress: Progress | None, *, team: "workers.Team | None" = None) -> None:
    """Wait for trials that run elsewhere; those whose process dies are replaced."""
    while team.working() if team else study.running():
        time.sleep(POLL)
        study.bury()
        if progress:
            progress.update()


def _require_success(plan: Plan, study: SweepStudy) -> None:
    """Refuse to call a sweep done that bore more failures than it should, or nothing else."""
    failed = study.failures()
    if not failed:
        return
    reason = f"trial {failed[0].number}: {failed[0].user_attrs['reason']}"
    if not any(trial.state in DONE for trial in study.trials()):
        if all(trial.user_attrs.get("input") for trial in failed):
            raise InputError(f"no trial could run; {reason}")
        raise SweepFailed(f"every trial failed; {reason}")
    if study.too_many():
        raise SweepFailed(f"{len(failed)} trials failed, sweep.max_failures={plan.settings.max_failures}; {reason}")


def _require_composable(sweep: Sweep) -> None:
    """Let what no trial could run with fail before anything is made.

    What the trials share is checked as a training's config is; every value that can be listed is composed once.
    """
    from xray_pneumonia.workflows.train import TrainConfig  # which imports this package

    lines = sweep.shared()
    shared = OmegaConf.masked_copy(sweep.compose(lines), [field.name for field in fields(TrainConfig)])
    if not OmegaConf.missing_keys(shared):  # else the space fills them
        check(shared, TrainConfig)
    seen: set[str] = set()
    for parameter in sweep.plan.space.parameters:
        if parameter.finite and not parameter.when:
            values = parameter.values()
            for value in values if isinstance(values[0], str) else values[:1]:
                [line] = overrides({parameter.key: value})
                if line not in seen and len(seen) < 32:
                    sweep.compose([*lines, line])
                    seen.add(line)


def _inquest(store: Store, trial: FrozenTrial) -> tuple[TrialState, list[float]] | None:
    """Look at the runs of a trial whose process is gone; see `study.Inquest`."""
    runs = stored_runs.find(store, {"sweep.trial_id": str(trial._trial_id)})
    runs = [run for run in runs if run.tags.get("sweep.trial") == str(trial.number)]
    for run in runs:
        if run.status == "RUNNING":
            stored_runs.close(store, run.run_id, status="KILLED", reason="its process is gone")
    for run in runs:
        if run.status == "FINISHED" and "sweep.values" in run.tags and "sweep.replicate" not in run.tags:
            return TrialState[run.tags["sweep.state"]], decode(run.tags["sweep.values"])
    return None


def _flow(value: Any) -> str:
    """Write plain values in Hydra's grammar; texts are quoted."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return repr(value)
