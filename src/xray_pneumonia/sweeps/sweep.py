"""Runs `-m`: plans the sweep, opens its study, runs its trials through a Hydra launcher, records the result."""

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from xray_pneumonia import extensions
from xray_pneumonia.config import build, check, drop_replaced, remember_references
from xray_pneumonia.errors import InputError
from xray_pneumonia.sweeps import workers
from xray_pneumonia.sweeps.parent_run import Progress, open_parent
from xray_pneumonia.sweeps.plan import Plan, read_plan
from xray_pneumonia.sweeps.settings import TrialSpec
from xray_pneumonia.sweeps.space import overrides
from xray_pneumonia.sweeps.storage import open_storage, resolve
from xray_pneumonia.sweeps.study import DONE, POLL, Claim, SweepStudy
from xray_pneumonia.sweeps.trial_runs import close_orphaned_runs, recover_result
from xray_pneumonia.tracking import stored_runs
from xray_pneumonia.tracking.run import Run
from xray_pneumonia.tracking.store import Store, open_store
from xray_pneumonia.tracking.store_errors import StoreUnavailable
from xray_pneumonia.types import MOST_PROCESSES, PROCESSORS

log = logging.getLogger(__name__)
for launcher in ("hydra._internal.core_plugins.basic_launcher", "hydra_plugins.hydra_joblib_launcher"):
    logging.getLogger(launcher).setLevel(logging.WARNING)  # our own line for each trial is shorter
logging.getLogger("submitit").setLevel(logging.ERROR)  # it warns each time it asks a Slurm without accounting


class SweepFailed(Exception):
    """More trials failed than the sweep tolerates (exit code 1)."""


@dataclass(frozen=True)
class Sweep:
    """A multirun: its plan, and what Hydra passes to a sweeper."""

    plan: Plan
    config: DictConfig
    context: HydraContext
    task: TaskFunction

    def compose(self, lines: Sequence[str]) -> DictConfig:
        """Let Hydra compose the config of a trial."""
        cfg = self.context.config_loader.load_sweep_config(self.config, list(lines))
        drop_replaced(cfg, lines)
        return cfg

    def lines(self, claim: Claim, *, parent: str) -> list[str]:
        """Write a trial as overrides."""
        plan = self.plan
        spec = TrialSpec(claim.trial_id, claim.number, plan.name, parent, plan.objectives, claim.point)
        return [*plan.shared(), *overrides(claim.point), f"++sweep.trial={_flow(asdict(spec))}"]


def run(
    config: DictConfig, arguments: Sequence[str], *, context: HydraContext, task: TaskFunction, root: type[Any]
) -> float | None:
    """Run a sweep, or continue one.

    Args:
        config: composed, without what is searched.
        arguments: the overrides, as typed.
        context: of Hydra.
        task: runs a trial.
        root: the class whose keyword-only parameters are the top-level keys of a trial's config.

    Returns:
        The best value of the first objective; None in a worker.

    Raises:
        InputError: the space, the database or every trial's input is wrong.
        SweepFailed: more trials failed than `sweep.max_failures`.
    """
    extensions.load(config.extensions)
    remember_references(config)
    choice = str(config.hydra.runtime.choices.get("sweep", "default"))
    sweep = Sweep(read_plan(config, arguments, choice=choice), config, context, task)
    home = Path(str(config.home)).expanduser().resolve()
    _require_composable(sweep, root)
    tracking = build(config.tracking)
    settings = sweep.plan.settings
    storage = open_storage(resolve(settings.storage, home), stale_after=settings.stale_after)
    store = open_store(tracking, home=home)
    role = workers.role()
    session = role.session if role else uuid.uuid4().hex
    if storage.engine.name == "postgresql" and not settings.name and "data.root" in sweep.plan.space.fixed:
        log.info("sweep %s: named after its command, data.root too; other paths need sweep.name", sweep.plan.name)
    study = SweepStudy(sweep.plan, storage, session=session, recover_result=lambda trial: recover_result(store, trial))
    with _findings_once(silent=bool(role and role.number)):
        if role:
            _work(sweep, study, parent=role.parent, progress=None)
            return None
        return _lead(sweep, study, store)


@contextmanager
def _findings_once(*, silent: bool) -> Iterator[None]:
    """Log each finding of the audit once and not for every trial; not at all in workers but the first."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        known = silent or record.getMessage() in seen
        seen.add(record.getMessage())
        return not known

    loggers = [
        logging.getLogger(f"xray_pneumonia.data.{name}") for name in ("datamodule", "records", "files", "patients")
    ]
    for logger in loggers:
        logger.addFilter(is_new)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_new)


def _lead(sweep: Sweep, study: SweepStudy, store: Store) -> float:
    """Keep the parent run, run the trials or have them run, and record the end.

    While another command leads, take trials as its workers do; lead when that command is done or dead.
    """
    plan = sweep.plan
    with ExitStack() as stack:
        parent = _follow(sweep, study, store, stack)
        study.fail_stale_trials()
        progress = Progress(plan, study, parent)
        log.info("sweep %s: %d of %d trials to go", plan.name, max(0, study.room()), plan.n_trials)
        while True:
            _train(sweep, study, parent=parent.run_id, progress=progress)
            _wait(study.running, study, progress)
            if study.room() <= 0 or study.too_many_failures():  # else another process left a trial unfinished
                break
        close_orphaned_runs(store, study, parent, name=plan.name)
        progress.conclude(store)
        _require_success(plan, study)
    progress.print()
    return progress.best()


def _follow(sweep: Sweep, study: SweepStudy, store: Store, stack: ExitStack) -> Run:
    """Take trials while another process leads; returns the parent run when this one is to lead."""
    leader: stored_runs.StoredRun | None = None
    told = ""
    while True:
        try:
            found = open_parent(sweep.plan, study, store, stack)
        except StoreUnavailable as error:
            if leader is None:
                raise
            log.warning("%s; this process goes on with trials", error)
        else:
            if isinstance(found, Run):
                return found
            leader = found
        does = "works along" if study.room() > 0 else "waits for its end"
        if does != told:
            who = f"pid {leader.tags.get('pid', '?')} on {leader.tags.get('host', '?')}"
            log.info("sweep %s: %s leads it; this process %s", sweep.plan.name, who, does)
            told = does
        _train(sweep, study, parent=leader.run_id, progress=None)
        time.sleep(POLL)


def _train(sweep: Sweep, study: SweepStudy, *, parent: str, progress: Progress | None) -> None:
    """Have workers run trials, where there are to be any, and run the rest."""
    count = sweep.config.workers
    if not 1 <= count <= MOST_PROCESSES:
        raise InputError(f"workers={count}: 1 to {MOST_PROCESSES}; this machine has {PROCESSORS} processors")
    if study.room() > 0 and count > 1:
        threads = OmegaConf.select(sweep.config, "trainer.threads")
        with workers.started(count, parent=parent, session=study.session, threads=threads) as working:
            _wait(working, study, progress)
    _work(sweep, study, parent=parent, progress=progress)


def _work(sweep: Sweep, study: SweepStudy, *, parent: str, progress: Progress | None) -> None:
    """Take trials and run them, until none is left to take."""
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=sweep.context, task_function=sweep.task, config=sweep.config
    )
    batch = sweep.plan.settings.parallel or workers.capacity(sweep.config.hydra.launcher)
    while not workers.leader_is_gone() and (claims := study.claim(batch)):
        for claim in claims:
            log.info("trial %d: %s", claim.number, " ".join(overrides(claim.point)))
        _launch(launcher, [sweep.lines(claim, parent=parent) for claim in claims], claims, study)
        if progress:
            progress.update()
            progress.tell()


def _launch(launcher: Any, lines: list[list[str]], claims: list[Claim], study: SweepStudy) -> None:
    """Run trials; each of them has ended when this returns, whatever became of its job."""
    try:
        with study.heartbeat(claims):
            returns = launcher.launch(lines, claims[0].number)
    except HydraException as error:  # the config of a trial cannot be composed
        for claim in claims:
            study.fail(claim, f"{type(error).__name__}: {' '.join(str(error).split())}")
    except Exception as error:  # a launcher gives up all its jobs when one of them dies
        if not study.begun(claims):
            raise
        log.warning("the launcher lost its jobs: %s", error)
        study.fail_lost(claims, f"the launcher lost it; {type(error).__name__}: {' '.join(str(error).split())}")
    else:
        for claim, done in zip(claims, returns, strict=True):
            study.fail(claim, f"the launcher lost it; {done.status}: {done._return_value!r}")


def _wait(busy: Callable[[], object], study: SweepStudy, progress: Progress | None) -> None:
    """Wait for trials of other processes; those whose process dies are queued again."""
    while busy():
        time.sleep(POLL)
        study.fail_stale_trials()
        if progress:
            progress.update()
            progress.tell()


def _require_success(plan: Plan, study: SweepStudy) -> None:
    """Refuse to call a sweep done in which too many trials failed, or all."""
    failed = study.failures()
    if not failed:
        return
    reason = f"trial {failed[0].number}: {failed[0].user_attrs['reason']}"
    if not any(trial.state in DONE for trial in study.trials()):
        if all(trial.user_attrs.get("input") for trial in failed):
            raise InputError(f"no trial could run; {reason}")
        raise SweepFailed(f"every trial failed; {reason}")
    if study.too_many_failures():
        raise SweepFailed(f"{len(failed)} trials failed, sweep.max_failures={plan.settings.max_failures}; {reason}")


def _require_composable(sweep: Sweep, root: type[Any]) -> None:
    """Refuse what no trial could run with, before anything is made.

    What the trials share is checked as a training's config is; every value that can be listed is composed once.
    """
    lines = sweep.plan.shared()
    shared = OmegaConf.masked_copy(sweep.compose(lines), [field.name for field in fields(root)])
    if not OmegaConf.missing_keys(shared):  # else the space fills them
        check(shared, root)
    seen: set[str] = set()
    for parameter in sweep.plan.space.parameters:
        if parameter.finite and not parameter.when:
            values = parameter.values()
            for value in values if isinstance(values[0], str) else values[:1]:
                [line] = overrides({parameter.key: value})
                if line not in seen and len(seen) < 32:
                    sweep.compose([*lines, line])
                    seen.add(line)


def _flow(value: Any) -> str:
    """Write plain values in Hydra's grammar; texts are quoted."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return repr(value)
