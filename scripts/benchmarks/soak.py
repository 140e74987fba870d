"""Measures what a trial costs a PostgreSQL database: python scripts/benchmarks/soak.py --trials 2000 --workers 16.

Workers run the project's own study and trial code on a training that only sleeps and reports its epochs, so that what
is left is the database: statements and bytes a trial and an epoch, the tax in time at the beginning and at the end, how
long the lock is held in which trials are taken, and whether a trial was lost or a number given twice. Without --storage
a PostgreSQL of this machine is started for it (Debian: apt-get install postgresql).
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import optuna
import psutil
import sqlalchemy as sa
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from optuna.storages import RDBStorage

from xray_pneumonia.sweeps import study as studies
from xray_pneumonia.sweeps.plan import read_plan
from xray_pneumonia.sweeps.settings import TrialSpec, take_sweep
from xray_pneumonia.sweeps.storage import locked, open_storage, resolve
from xray_pneumonia.sweeps.study import Claim, SweepStudy
from xray_pneumonia.sweeps.trial import Trial

EPOCHS = 5
SPACE = ["optimizer.lr=tag(log,interval(1e-5,1e-1))", "model.width=int(interval(4,64))"]
NAME = "soak"


@dataclass(frozen=True)
class Cost:
    """What one trial cost beyond its training."""

    number: int
    seconds: float
    computing: float  # seconds of this process
    holding: float  # seconds with the lock
    statements: int  # without those of epochs
    of_epochs: int


@contextlib.contextmanager
def postgresql() -> Iterator[tuple[str, int]]:
    """Start a cluster of this machine's PostgreSQL in a temporary folder; yields URL and process."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))[-1].parent
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # it refuses to be root
    folder = Path(tempfile.mkdtemp(prefix="xray-soak-", dir="/tmp"))
    if as_user:
        shutil.chown(folder, "postgres", "postgres")

    def run(program: str, *arguments: str) -> None:
        subprocess.run([*as_user, str(programs / program), *arguments], check=True, capture_output=True, cwd="/")

    run("initdb", "-D", str(folder), "-A", "trust", "-U", "postgres")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    run("pg_ctl", "-D", str(folder), "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        process = int((folder / "postmaster.pid").read_text().splitlines()[0])
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres", process
    finally:
        run("pg_ctl", "-D", str(folder), "-m", "immediate", "stop")
        shutil.rmtree(folder)


def arguments_of(asked: argparse.Namespace) -> list[str]:
    """Write the sweep as overrides."""
    keys = {"name": NAME, "n_trials": asked.trials, "sampler": asked.sampler, "storage": asked.storage}
    return [*SPACE, *(f"sweep.{key}={value}" for key, value in keys.items())]


def open_study(asked: argparse.Namespace) -> SweepStudy:
    """Open the study as a sweep does, without runs."""
    arguments = arguments_of(asked)
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        cfg = compose("train", [argument for argument in arguments if argument.startswith("sweep.")])
    plan = read_plan(cfg, arguments, choice="default")
    storage = open_storage(resolve(asked.storage, Path("/nowhere")), stale_after=plan.settings.stale_after)
    return SweepStudy(plan, storage, session=str(os.getpid()), recover_result=lambda trial: None)


def work(asked: argparse.Namespace, output: Path) -> None:
    """Take trials until none is left, and write what each cost."""
    held, statements = [0.0], [0]

    @contextlib.contextmanager
    def timed(storage: RDBStorage) -> Iterator[None]:
        with locked(storage):
            began = time.perf_counter()
            yield
            held[0] += time.perf_counter() - began

    mock.patch.object(studies, "locked", timed).start()
    open_storage.cache_clear()
    study = open_study(asked)
    count: Callable[..., None] = lambda *_: statements.__setitem__(0, statements[0] + 1)  # noqa: E731
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):  # once: Hydra is not what is measured
        composed = compose("train", ["home=/nowhere", f"sweep.storage={asked.storage}"])
    sa.event.listen(study.storage.engine, "before_cursor_execute", count)
    with output.open("w", encoding="utf-8") as file:
        while True:
            held[0], statements[0], began, computed = 0.0, 0, time.perf_counter(), time.process_time()
            claims = study.claim(1)
            if not claims:
                return
            of_epochs, slept = run_trial(study, claims[0], composed, asked.seconds, statements)
            seconds, computing = time.perf_counter() - began - slept, time.process_time() - computed
            cost = Cost(claims[0].number, seconds, computing, held[0], statements[0] - of_epochs, of_epochs)
            file.write(json.dumps(asdict(cost)) + "\n")


def run_trial(
    study: SweepStudy, claim: Claim, composed: DictConfig, seconds: float, statements: list[int]
) -> tuple[int, float]:
    """Run a trial whose training sleeps; returns the statements of its epochs, and the seconds slept."""
    of_epochs, slept = [0], [0.0]

    def train(cfg: object, report: Any) -> None:
        for epoch in range(EPOCHS):
            began = time.perf_counter()
            time.sleep(random.uniform(0.8, 1.2) * seconds / EPOCHS)
            slept[0] += time.perf_counter() - began
            value = 1 - abs(float(claim.point["optimizer.lr"]) - 0.01) + epoch / 100
            before = statements[0]
            state = {"callback_metrics": {"val/auroc": value}, "current_epoch": epoch, "is_global_zero": True}
            report.on_train_epoch_end(SimpleNamespace(**state), None)
            of_epochs[0] += statements[0] - before
        report._require_open()  # as `close` does
        report.values = [value]

    cfg = composed.copy()
    cfg.sweep.trial = asdict(TrialSpec(claim.trial_id, claim.number, NAME, "p", {"val/auroc": "max"}, claim.point))
    settings = take_sweep(cfg)
    assert settings is not None
    with study.heartbeat([claim]):
        Trial(settings, cfg, train=train).run()
    return of_epochs[0], slept[0]


def main() -> None:
    """Run the workers and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a trial's training")
    parser.add_argument("--sampler", default="auto")
    parser.add_argument("--storage", help="URL of an empty PostgreSQL database")
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with contextlib.ExitStack() as stack:
        server = None
        if asked.storage is None:
            asked.storage, server = stack.enter_context(postgresql())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        study = open_study(asked)
        size = _size(study.storage)
        began = time.perf_counter()
        study.storage.engine.dispose()  # each worker opens its own connections
        context = multiprocessing.get_context(
            "fork"
        )  # sixteen times 5 s of imports and 0.5 GB are not what is measured
        each = [context.Process(target=work, args=(asked, folder / str(number))) for number in range(asked.workers)]
        for process in each:
            process.start()
        for process in each:
            process.join()
        wall = time.perf_counter() - began
        costs = [Cost(**json.loads(line)) for file in folder.iterdir() for line in file.read_text().splitlines()]
        report(sorted(costs, key=lambda cost: cost.number), asked, wall)
        stored = (_size(study.storage) - size) / len(costs)
        print(f"stored: {stored:.0f} bytes a trial, of them {_epoch_bytes(study)} an epoch")
        if server is not None:
            print(f"the database computes {1e3 * _computing(server) / len(costs):.0f} ms a trial")
        check(study, asked.trials)


def report(costs: list[Cost], asked: argparse.Namespace, wall: float) -> None:
    """Print the tax of the first and the last tenth."""
    tenth = max(1, len(costs) // 10)
    print(
        f"{len(costs)} trials of {asked.seconds:g} s by {asked.workers} workers in {wall:.0f} s, {os.cpu_count()} cores"
    )
    parts = {"first": costs[tenth : 2 * tenth], "last": costs[-tenth:]}  # workers import during the first of all
    for name, part in parts.items():
        time_, cpu, lock = (
            1e3 * statistics.median(getattr(cost, key) for cost in part) for key in ("seconds", "computing", "holding")
        )
        print(f"{name} tenth: tax {time_:.0f} ms a trial, {cpu:.0f} ms of computing, lock held for {lock:.0f} ms")
    statements = statistics.mean(cost.statements for cost in costs)
    epoch = statistics.mean(cost.of_epochs for cost in costs) / EPOCHS
    print(f"statements: {statements:.0f} a trial, {epoch:.1f} an epoch")


def check(study: SweepStudy, expected: int) -> None:
    """Require that no trial was lost and no number given twice."""
    trials = study.trials()
    states = Counter(trial.state.name for trial in trials)
    numbers = [trial.number for trial in trials]
    sound = states == {"COMPLETE": expected} and numbers == list(range(expected))
    print(f"trials: {dict(states)}, numbers {'without gap or double' if sound else 'WRONG'}")
    sys.exit(not sound)


def _size(storage: RDBStorage) -> int:
    with storage.engine.connect() as connection:
        return int(connection.execute(sa.text("select pg_database_size(current_database())")).scalar_one())


def _epoch_bytes(study: SweepStudy) -> int:
    table = "trial_intermediate_values"
    query = f"select pg_total_relation_size('{table}') / greatest(count(*), 1) from {table}"
    with study.storage.engine.connect() as connection:
        return int(connection.execute(sa.text(query)).scalar_one())


def _computing(server: int) -> float:
    """Add up the processor time of a server, and of its connections that ended."""
    parent = psutil.Process(server)
    every = [parent.cpu_times(), *(child.cpu_times() for child in parent.children())]
    return sum(each.user + each.system for each in every) + every[0].children_user + every[0].children_system


if __name__ == "__main__":
    main()
