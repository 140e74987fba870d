"""A study in its database: claims, stale trials, failures, samplers; no training."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading

import pytest
from hydra import compose, initialize_config_module
from optuna.trial import TrialState

from xray_pneumonia.errors import InputError
from xray_pneumonia.sweeps import storage as storages
from xray_pneumonia.sweeps.plan import read_plan
from xray_pneumonia.sweeps.storage import open_storage
from xray_pneumonia.sweeps.study import SweepStudy

GONE = {"host": os.uname().nodename, "pid": 2**22 - 1, "born": 1.0}


@pytest.fixture
def make(tmp_path):
    """Make a study in a fresh database, or open it again."""

    def opened(*arguments, session="s", recover_result=lambda trial: None):
        with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
            cfg = compose("train", [argument for argument in arguments if argument.startswith("sweep")])
        plan = read_plan(cfg, arguments, choice="default")
        return SweepStudy(
            plan,
            open_storage(f"sqlite:///{tmp_path}/s.db", stale_after=plan.settings.stale_after),
            session=session,
            recover_result=recover_result,
        )

    yield opened
    open_storage.cache_clear()


def tell(study, claim, value=0.5):
    study.study.tell(claim.number, value)


def kill(study, claim):
    """Let the process that holds a trial be one that is gone."""
    study.storage.set_trial_user_attr(claim.trial_id, "owner", {**GONE, "session": study.session})


def test_a_grid_is_dealt_once(make):
    study = make("model=cnn,mlp", "seed=1,2")
    claims = study.claim(10)
    assert [claim.point for claim in claims] == [
        {"model": "cnn", "seed": "1"},
        {"model": "cnn", "seed": "2"},
        {"model": "mlp", "seed": "1"},
        {"model": "mlp", "seed": "2"},
    ]
    assert study.claim(10) == []
    assert make("model=cnn,mlp", "seed=1,2").claim(1) == []  # they run, in this very process


def test_a_stale_trial_is_failed_and_replaced(make):
    study = make("model=cnn,mlp")
    first, second = study.claim(2)
    tell(study, second)
    kill(study, first)
    again = make("model=cnn,mlp", session="later")
    [claim] = again.claim(5)
    assert claim.point == first.point
    assert claim.number == 2
    states = [trial.state for trial in again.trials()]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.RUNNING]


def test_a_search_goes_on_with_the_number_it_was_asked_for(make):
    arguments = ("optimizer.lr=interval(0,1)", "sweep.n_trials=4", "sweep.sampler=random")
    study = make(*arguments)
    one, two = study.claim(2)
    tell(study, one)
    kill(study, two)
    rest = make(*arguments, session="later").claim(10)
    assert len(rest) == 3
    assert two.point in [claim.point for claim in rest]
    values = [claim.point["optimizer.lr"] for claim in [one, *rest]]
    assert len(set(values)) == 4  # a new process does not draw the first numbers again


def test_a_trial_that_was_trained_to_its_end_counts(make):
    study = make("model=cnn,mlp")
    [first] = study.claim(1)
    kill(study, first)
    later = make("model=cnn,mlp", session="later", recover_result=lambda trial: (TrialState.COMPLETE, [0.75]))
    [claim] = later.claim(5)
    assert claim.point == {"model": "mlp"}
    assert later.trials()[0].value == 0.75


def test_a_failure_is_borne_by_its_command_and_tried_again_by_the_next(make):
    study = make("model=cnn,mlp")
    first, second = study.claim(2)
    study.fail(first, "no reason at all")
    tell(study, second)
    assert study.claim(5) == []
    assert [trial.number for trial in study.failures()] == [first.number]
    later = make("model=cnn,mlp", session="later")
    assert later.failures() == []
    assert [claim.point for claim in later.claim(5)] == [first.point]


def test_processes_on_other_machines_are_given_time(make):
    arguments = ("model=cnn,mlp", "sweep.stale_after=1000")
    study = make(*arguments)
    [claim] = study.claim(1)
    study.storage.set_trial_user_attr(claim.trial_id, "owner", {**GONE, "host": "elsewhere", "session": "s"})
    assert [c.point for c in make(*arguments, session="later").claim(5)] == [{"model": "mlp"}]
    study.storage.record_heartbeat(claim.trial_id)
    with study.storage.engine.begin() as connection:
        connection.exec_driver_sql("update trial_heartbeats set heartbeat = datetime('now', '-2000 seconds')")
    assert [c.point for c in make(*arguments, session="third").claim(5)] == [{"model": "cnn"}]


@pytest.mark.parametrize(
    ("sampler", "pruner"), [("tpe", "none"), ("random", "median"), ("cmaes", "halving"), ("qmc", "hyperband")]
)
def test_samplers_and_pruners_by_name(make, sampler, pruner):
    arguments = ("optimizer.lr=tag(log,interval(1e-4,1))", "model.width=int(interval(4,32))")
    study = make(*arguments, "sweep.n_trials=4", f"sweep.sampler={sampler}", f"sweep.pruner={pruner}")
    points = []
    while claims := study.claim(1):
        points.append(claims[0].point)
        tell(study, claims[0], points[-1]["optimizer.lr"])
    assert len({point["optimizer.lr"] for point in points}) == 4
    assert all(4 <= point["model.width"] <= 32 for point in points)


def test_several_objectives(make):
    study = make(
        "optimizer.lr=interval(0,1)", "sweep.n_trials=3", "sweep.objectives={val/auroc:max,model/parameters:min}"
    )
    for claim in study.claim(3):
        tell(study, claim, [claim.point["optimizer.lr"], 100.0])
    assert len(study.study.best_trials) == 1


def test_threads_never_claim_one_trial_twice(make):
    study = make("optimizer.lr=interval(0,1)", "sweep.n_trials=12", "sweep.sampler=random")
    claimed = []

    def work():
        while claims := study.claim(1):
            claimed.append(claims[0].number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(12))


def test_a_locked_database_is_said_to_be_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(storages, "BUSY_TIMEOUT", 0.1)
    url = f"sqlite:///{tmp_path}/s.db"
    connection = sqlite3.connect(tmp_path / "s.db")
    connection.execute("create table t (x)")
    connection.execute("begin exclusive")
    with pytest.raises(InputError, match="cannot be written: database is locked"):
        open_storage(url)
    connection.close()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv")
def test_a_read_only_database_is_said_to_be_so(tmp_path):
    path = tmp_path / "s.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (x)")
    connection.close()
    path.chmod(0o444)
    code = (
        "from xray_pneumonia.sweeps.storage import open_storage\n"
        "from xray_pneumonia.errors import InputError\n"
        f"try: open_storage('sqlite:///{path}')\n"
        "except InputError as error: print(error)"
    )
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
    done = subprocess.run([*drop, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "readonly" in done.stdout, done.stderr
