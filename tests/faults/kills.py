"""Kill tiny runs at random moments: is a checkpoint unreadable, a step logged twice, a result different?

    python tests/faults/kills.py 200 --folder DIR

One warm parent forks every training, so that a kill costs a second or two. A killed run is resumed, killed again, and
so on until it ends; then its weights and metrics must be those of an uninterrupted run, difference exactly 0. Moments
are drawn in the processor time of the child, so that a busy machine does not move them all to the start. Figures and
the MLflow model, half of a tiny run's time and no part of the question, are left out.
"""

import argparse
import contextlib
import os
import random
import signal
import sqlite3
import sys
import time
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a parent with threads could not be forked

import torch

from xray_pneumonia import cli
from xray_pneumonia.data import synthetic
from xray_pneumonia.evaluation.report import figures
from xray_pneumonia.training.checkpoints import BEST, newest_valid, verify
from xray_pneumonia.workflows import training_run

TINY = [
    *("model=resnet", "model.width=4", "model.depth=1", "model.stages=2", "model.dropout=0.3"),
    *("data.image_size=32", "data.batch_size=8", "augmentation=light"),
    *("trainer=cpu", "trainer.max_epochs=4", "trainer.patience=null"),
    *("trainer.keep_freed_memory=false", "tracking.system_metrics=false", "evaluation=quick"),
]
TWICE = (
    "select run_uuid, key, step, count(*) from metrics where key not like 'system/%' "
    "group by run_uuid, key, step having count(*) > 1"
)
METRICS = "select key, step, value from metrics where run_uuid = ? and key not like 'time/%' order by key, step"


class Trainings:
    """Trainings of one config below one folder, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.data = folder, folder / "mlruns", folder / "xrays"

    def start(self, *extra: str) -> int:
        """Fork a training; returns its process."""
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            log = os.open(self.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            training_run.record_bundle = figures.save = lambda *_, **__: None
            sys.argv = ["xray", "train", f"data.root={self.data}", f"home={self.home}", *TINY, *extra]
            code = cli.main()
        finally:
            os._exit(code)

    def rows(self, query: str, *values: str) -> list[tuple]:
        """Ask the database itself."""
        if not (self.home / "mlflow.db").exists():
            return []
        connection = sqlite3.connect(f"file:{self.home}/mlflow.db?mode=ro", uri=True, timeout=20)
        with contextlib.closing(connection) as database:
            try:
                return database.execute(query, values).fetchall()
            except sqlite3.OperationalError:  # killed before the tables were made
                return []

    def newest(self) -> tuple[str, str]:
        """The run that was made last, and its status; empty where there is none."""
        found = self.rows("select run_uuid, status from runs order by start_time desc limit 1")
        return found[0] if found else ("", "")

    def checkpoints(self, run_id: str) -> Path:
        return self.home / "artifacts" / "xray" / run_id / "artifacts" / "checkpoints"

    def result(self, run_id: str) -> tuple[dict, list]:
        """The weights, and every metric that is no time."""
        weights = torch.load(self.checkpoints(run_id) / "last.ckpt", weights_only=True)["state_dict"]
        return weights, self.rows(METRICS, run_id)


def wait(process: int, seconds: float = 1e9) -> int | None:
    """Wait until a child ends, or has used so much processor time; returns its exit code, None where it still runs."""
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        if (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") >= seconds:
            return None
        time.sleep(0.01)


def unreadable(folder: Path) -> list[str]:
    """Name the checkpoints of a run that cannot be read."""
    problems = []
    for path in sorted(folder.glob("*.ckpt")):
        try:
            verify(path)
            torch.load(path, weights_only=True)
        except Exception as error:
            problems.append(f"{path}: {error}")
    return problems


def run(kills: int, folder: Path, seed: int) -> Counter:
    """Kill so often; returns counts of what was seen."""
    moments, trainings = random.Random(seed), Trainings(folder)
    synthetic.generate(trainings.data, patients=40, seed=0)
    wait(trainings.start())  # makes the store and the cache
    before = os.times()
    assert wait(trainings.start("resume=new")) == 0, "the reference did not train"
    after = os.times()
    length = after.children_user + after.children_system - before.children_user - before.children_system
    reference, _ = trainings.newest()
    weights, metrics = trainings.result(reference)
    seen: Counter = Counter()
    extra = "resume=new"
    while seen["kills"] < kills or extra != "resume=new":
        process = trainings.start(extra)
        code = wait(process, moments.uniform(0, length)) if seen["kills"] < kills else wait(process)
        if code is None:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            seen["kills"] += 1
        elif code != 0:
            seen["failed"] += 1
            print(f"exit code {code} of {extra}: see {folder / 'log.txt'}", flush=True)
            break
        run_id, status = trainings.newest()
        place = trainings.checkpoints(run_id)
        if code == 0:
            other_weights, other_metrics = trainings.result(run_id)
            same = all(torch.equal(weights[name], other_weights[name]) for name in weights)
            seen["finished"] += 1
            seen["different"] += not (same and metrics == other_metrics)
            verify(place / BEST)
        problems = unreadable(place)
        seen["unreadable"] += len(problems)
        print(*problems, sep="\n", end="\n" * bool(problems), flush=True)
        stopped = run_id != reference and status != "FINISHED"
        saved = newest_valid(place) if stopped else None
        extra = f"resume={run_id}" if saved else "resume=new"
        if code is None:
            seen["in training" if saved and not saved.trained else "after it" if saved else "before a checkpoint"] += 1
    seen["steps logged twice"] = len(trainings.rows(TWICE))
    return seen


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    seen = run(asked.kills, asked.folder.resolve(), asked.seed)
    print({key: seen[key] for key in sorted(seen)})
    wrong = sum(seen[key] for key in ("unreadable", "steps logged twice", "different", "failed"))
    return int(wrong > 0 or seen["finished"] == 0)


if __name__ == "__main__":
    sys.exit(main())
