"""A study in its database: claims, stale trials, failures, samplers; no training."""

import math
import os
import sqlite3
import threading
import time
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_module
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from xray_pneumonia.errors import InputError, Stopped
from xray_pneumonia.sweeps import storage as storages
from xray_pneumonia.sweeps import study as studies
from xray_pneumonia.sweeps.parent_run import open_parent
from xray_pneumonia.sweeps.plan import read_plan
from xray_pneumonia.sweeps.settings import TrialSpec, take_sweep
from xray_pneumonia.sweeps.storage import open_storage
from xray_pneumonia.sweeps.study import SweepStudy
from xray_pneumonia.sweeps.trial import Trial
from xray_pneumonia.tracking.process import identity_tags
from xray_pneumonia.tracking.store import TrackingSettings, open_store
from xray_pneumonia.tracking.store_errors import StoreUnavailable
from xray_pneumonia.tracking.stored_runs import StoredRun, get
from xray_pneumonia.tracking.sync import is_alive

GONE = {"host": os.uname().nodename, "pid": 2**22 - 1, "born": 1.0}
GRID = ("model=cnn,mlp",)


@pytest.fixture
def make(tmp_path):
    """Make a study in a fresh database, or open it again."""

    def opened(*arguments, session="s", recover_result=lambda trial: None):
        with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
            cfg = compose("train", [argument for argument in arguments if argument.startswith("sweep")])
        plan = read_plan(cfg, arguments, choice="default")
        storage = open_storage(f"sqlite:///{tmp_path}/s.db", stale_after=plan.settings.stale_after)
        return SweepStudy(plan, storage, session=session, recover_result=recover_result)

    yield opened
    open_storage.cache_clear()


def tell(study, claim, value=0.5):
    study.study.tell(claim.number, value)


def assign(study, claim, role="owner", **changes):
    """Let a trial belong to another process; by default one of this machine that is gone."""
    study.storage.set_trial_user_attr(claim.trial_id, role, {**GONE, "session": study.session, **changes})


def points(claims):
    return [claim.point for claim in claims]


def test_a_grid_is_dealt_once(make):
    study = make("model=cnn,mlp", "seed=1,2")
    assert points(study.claim(10)) == [{"model": model, "seed": seed} for model in ("cnn", "mlp") for seed in "12"]
    assert study.claim(10) == []
    assert make("model=cnn,mlp", "seed=1,2").claim(1) == []  # they run, in this very process


def test_a_stale_trial_is_failed_and_replaced(make):
    study = make(*GRID)
    first, second = study.claim(2)
    tell(study, second)
    assign(study, first)
    again = make(*GRID, session="later")
    [claim] = again.claim(5)
    assert (claim.number, claim.point) == (2, first.point)
    assert [trial.state for trial in again.trials()] == [TrialState.FAIL, TrialState.COMPLETE, TrialState.RUNNING]


def test_trials_that_were_asked_for_while_the_database_went_away_wait_for_nobody(make, monkeypatch):
    """They belong to this process, which lives, and are chosen without the lock, which others need."""
    study, outcomes = make(*GRID), iter([OperationalError("", {}, Exception("away"))])
    choose, locked = study._suggest, studies.locked
    held = []

    @contextmanager
    def watched(storage):
        with locked(storage):
            held.append(True)
            yield
            held.pop()

    def suggest(trial, sampler):
        assert not held
        for error in outcomes:
            raise error
        return choose(trial, sampler)

    monkeypatch.setattr(studies, "locked", watched)
    monkeypatch.setattr(study, "_suggest", suggest)
    monkeypatch.setattr(storages, "_failed_at", [-math.inf])
    assert points(study.claim(5)) == [{"model": "cnn"}, {"model": "mlp"}]
    assert [trial.state.name for trial in study.trials()] == ["FAIL", "FAIL", "RUNNING", "RUNNING"]
    assert study.failures() == []


def test_a_search_goes_on_with_the_number_it_was_asked_for(make):
    arguments = ("optimizer.lr=interval(0,1)", "sweep.n_trials=4", "sweep.sampler=random")
    study = make(*arguments)
    one, two = study.claim(2)
    tell(study, one)
    assign(study, two)
    rest = make(*arguments, session="later").claim(10)
    assert len(rest) == 3
    assert two.point in points(rest)
    assert len({point["optimizer.lr"] for point in points([one, *rest])}) == 4  # no draw is repeated


def test_a_trial_that_was_trained_to_its_end_counts(make):
    study = make(*GRID)
    [first] = study.claim(1)
    assign(study, first)
    later = make(*GRID, session="later", recover_result=lambda trial: (TrialState.COMPLETE, [0.75]))
    assert points(later.claim(5)) == [{"model": "mlp"}]
    assert later.trials()[0].value == 0.75


def test_a_failure_counts_for_its_command_and_is_tried_again_by_the_next(make):
    study = make(*GRID)
    first, second = study.claim(2)
    study.fail(first, "no reason at all")
    tell(study, second)
    assert study.claim(5) == []
    assert [trial.number for trial in study.failures()] == [first.number]
    later = make(*GRID, session="later")
    assert later.failures() == []
    assert points(later.claim(5)) == [first.point]


def silence(study, seconds):
    with study.storage.engine.begin() as connection:
        connection.exec_driver_sql(f"update trial_heartbeats set heartbeat = datetime('now', '-{seconds} seconds')")


def test_processes_on_other_machines_are_given_time(make):
    arguments = (*GRID, "sweep.stale_after=1000")
    study = make(*arguments)
    [claim] = study.claim(1)
    assign(study, claim, host="elsewhere")
    assert points(make(*arguments, session="later").claim(5)) == [{"model": "mlp"}]  # and its first heartbeat
    silence(study, 900)
    assert make(*arguments, session="later").claim(5) == []
    silence(study, 2000)
    assert points(make(*arguments, session="third").claim(5)) == [{"model": "cnn"}]


def test_after_the_database_was_away_nobody_is_silent(make):
    study = make(*GRID)
    [claim] = study.claim(1)
    assign(study, claim, host="elsewhere")
    study.fail_stale_trials()
    silence(study, 2000)
    storages.note_failure()
    study.fail_stale_trials()
    assert study.running() == 1
    storages._failed_at[0] = -1e9
    study.fail_stale_trials()
    assert study.running() == 0


def test_a_trial_waits_for_the_store_that_knows_how_it_ended(make):
    def unavailable(trial):
        raise StoreUnavailable("no answer")

    study = make(*GRID, recover_result=unavailable)
    [claim] = study.claim(1)
    assign(study, claim)
    study.fail_stale_trials()
    assert study.running() == 1
    study._recover_result = lambda trial: (TrialState.COMPLETE, [0.75])
    study.fail_stale_trials()
    assert study.trials()[0].value == 0.75


@pytest.fixture
def trial(tmp_path):
    """Make the job of a claimed trial, with a function that stands for its training."""

    def made(study, claim, train):
        with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
            cfg = compose("train", [f"home={tmp_path}", f"sweep.storage=sqlite:///{tmp_path}/s.db"])
        spec = TrialSpec(claim.trial_id, claim.number, study.study.study_name, "p", {"val/auroc": "max"}, claim.point)
        cfg.sweep.trial = asdict(spec)
        job = Trial(take_sweep(cfg), cfg, train=train)
        job._store = None  # of the runs; there are none
        return job

    return made


@pytest.mark.parametrize("ends", ["late", "failing", "stopped"])
def test_a_process_that_comes_back_late_changes_nothing(make, trial, ends, caplog):
    """It was paused for longer than the grace: its trial is failed and queued again, once."""
    study = make(*GRID)
    [claim] = study.claim(1)

    def train(cfg, report):
        assign(study, claim, "worker")
        study.fail_stale_trials()
        if ends == "late":
            report.close(None, best_epoch=1)
        raise ValueError("out of memory") if ends == "failing" else Stopped(15)

    job = trial(study, claim, train)
    with pytest.raises(Stopped) if ends == "stopped" else nullcontext():
        assert math.isnan(job.run())
    assert ("its late result is dropped" in caplog.text) == (ends != "stopped")
    replaced = [t.user_attrs["replaces"] for t in study.trials() if "replaces" in t.user_attrs]
    assert (study.trials()[0].state, replaced) == (TrialState.FAIL, [0])
    assert "reason" not in study.trials()[0].user_attrs


@pytest.mark.parametrize("pruned", [True, False])
@pytest.mark.parametrize("reachable", [True, False])
def test_a_process_paused_between_its_run_and_its_report_says_that_its_result_is_dropped(
    make, trial, pruned, reachable, caplog, monkeypatch
):
    study = make(*GRID)
    [claim] = study.claim(1)
    dropped = []

    def drop(store, *known, reason):
        dropped.append(known)
        if not reachable:
            raise StoreUnavailable("the store does not answer")

    monkeypatch.setattr("xray_pneumonia.sweeps.trial.drop_late_runs", drop)

    def train(cfg, report):
        assign(study, claim, "worker")
        report.values, report.pruned = [0.9], pruned
        study.fail_stale_trials()

    assert math.isnan(trial(study, claim, train).run())
    assert "its late result is dropped" in caplog.text
    assert dropped == [(claim.trial_id,)]
    assert ("may still be listed as finished" in caplog.text) != reachable
    assert study.trials()[0].state == TrialState.FAIL


def test_the_fingerprint_of_the_data_decides_and_not_their_path(make, trial):
    """A trial of the same keys with other images fails; what failed is no example for others."""
    study = make("model=cnn,mlp,resnet,torchvision", "data.root=/a", "sweep.name=one")
    claims = make("model=cnn,mlp,resnet,torchvision", "data.root=/b", "sweep.name=one").claim(4)

    def outcome(claim, root, fingerprint):
        def train(cfg, report):
            cfg.data.root = root
            report._require_records(fingerprint)
            report.values = [0.5]

        trial(study, claim, train).run()
        return study.trials()[claim.number]

    assert outcome(claims[0], "/a", "1" * 64).state == TrialState.COMPLETE
    assert outcome(claims[1], "/b", "1" * 64).state == TrialState.COMPLETE
    failed = outcome(claims[2], "/b", "2" * 64)
    assert "data.root=/b: holds other images than trial 0" in failed.user_attrs["reason"]
    assert outcome(claims[3], "/a", "1" * 64).state == TrialState.COMPLETE


@pytest.mark.parametrize(
    ("minutes", "waited", "led"), [(19, 0, True), (19, 11, False), (-10, 11, False), (21, 0, False)]
)
def test_a_sweep_is_led_from_another_machine_as_long_as_that_gives_signs_of_life(
    make, home, monkeypatch, minutes, waited, led
):
    """Their homes are not shared, so no lock tells; each clock may be wrong by five minutes."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = TrackingSettings(uri=None, experiment_name="led", run_name=None, system_metrics=False, required=False)
    store, study = open_store(settings, home=home), make(*GRID, f"sweep.name=led{minutes}_{waited}")
    tags = {**identity_tags(), "host": "elsewhere", "heartbeat": str(time.time() - 60 * minutes)}
    tags |= {"verb": "sweep", "sweep.name": study.study.study_name}
    leader = store.client.create_run(store.experiment_id, tags=tags).info.run_id
    assert is_alive(get(store, leader)) == (minutes < 20)  # seen for the first time
    later = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + 60 * waited)
    monkeypatch.setattr("xray_pneumonia.tracking.sync.time", later)
    with ExitStack() as stack:
        parent = open_parent(study._plan, study, store, stack)
        assert parent.run_id == leader
        assert isinstance(parent, StoredRun) == led
    store.client.set_terminated(leader)


def test_a_trial_that_waits_in_a_queue_gives_heartbeats(make, monkeypatch):
    study = make(*GRID)
    [claim] = study.claim(1)
    assign(study, claim, host="elsewhere")
    study.fail_stale_trials()
    silence(study, 2000)
    monkeypatch.setattr(study.storage, "heartbeat_interval", 0.05)
    with study.heartbeat([claim]):
        while claim.trial_id in study._silent()():
            time.sleep(0.02)
    study.fail_stale_trials()
    assert study.running() == 1


def test_a_launcher_that_loses_its_jobs_costs_those_that_are_gone(make, monkeypatch):
    """One job was killed, one goes on for a while, one has not begun: failed, awaited, queued again."""
    study = make("model=cnn,mlp,resnet")
    killed, alive, waiting = claims = study.claim(3)
    assert not study.begun(claims)
    assign(study, killed, "worker")
    assign(study, alive, "worker", host="elsewhere")
    assert study.begun(claims)
    monkeypatch.setattr(studies.time, "sleep", lambda _: tell(study, alive))
    study.fail_lost(claims, "its job is gone")
    states = [(t.state.name, t.user_attrs.get("reason"), t.user_attrs.get("replaces")) for t in study.trials()]
    assert states == [
        ("FAIL", "its job is gone", None),
        ("COMPLETE", None, None),
        ("FAIL", None, None),
        ("WAITING", None, waiting.number),
    ]


@pytest.mark.parametrize(
    ("sampler", "pruner"), [("tpe", "none"), ("random", "median"), ("cmaes", "halving"), ("qmc", "hyperband")]
)
def test_samplers_and_pruners_by_name(make, sampler, pruner):
    arguments = ("optimizer.lr=tag(log,interval(1e-4,1))", "model.width=int(interval(4,32))")
    study = make(*arguments, "sweep.n_trials=4", f"sweep.sampler={sampler}", f"sweep.pruner={pruner}")
    tried = []
    while claims := study.claim(1):
        tried += points(claims)
        tell(study, claims[0], tried[-1]["optimizer.lr"])
    assert len({point["optimizer.lr"] for point in tried}) == 4
    assert all(4 <= point["model.width"] <= 32 for point in tried)


def test_several_objectives(make):
    objectives = "sweep.objectives={val/auroc:max,model/parameters:min}"
    study = make("optimizer.lr=interval(0,1)", "sweep.n_trials=3", objectives)
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


@pytest.fixture
def database(tmp_path):
    """A SQLite database with a table."""
    path = tmp_path / "s.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (x)")
    connection.close()
    return path


@pytest.mark.parametrize(("kind", "mode"), [("ext4", "wal"), ("nfs4", "delete")])
def test_a_network_folder_gets_no_write_ahead_log(tmp_path, monkeypatch, kind, mode):
    mounts = [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint=str(tmp_path), fstype=kind)]
    monkeypatch.setattr(storages.psutil, "disk_partitions", lambda all: mounts)
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    open_storage.cache_clear()
    with storage.engine.connect() as connection:
        assert connection.exec_driver_sql("pragma journal_mode").scalar() == mode


def test_a_locked_database_is_said_to_be_locked(database, monkeypatch):
    monkeypatch.setattr(storages, "BUSY_TIMEOUT", 0.1)
    connection = sqlite3.connect(database)
    connection.execute("begin exclusive")
    with pytest.raises(InputError, match="cannot be written: database is locked"):
        open_storage(f"sqlite:///{database}")
    connection.close()


def test_a_read_only_database_is_said_to_be_so(database, without_rights):
    database.chmod(0o444)
    with pytest.raises(InputError, match="readonly"):
        open_storage(f"sqlite:///{database}")
