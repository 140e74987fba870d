"""F25: PostgreSQL restarts, or has no room for one more, while a training logs to it."""

import contextlib
import signal
import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient

from xray_pneumonia.tracking import sync
from xray_pneumonia.tracking.run import start_run
from xray_pneumonia.tracking.spool import spools
from xray_pneumonia.tracking.store import open_or_offline, open_store

CURE = ("max_connections", "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE")


def begin(store):
    return start_run(store, name="n", tags={"verb": "train"}, system_metrics=False)


def histories(url, experiment, metric):
    """Give the status and the steps of every run of an experiment."""
    client = MlflowClient(url)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return [(run.info.status, [one.step for one in client.get_metric_history(run.info.run_id, metric)]) for run in runs]


def test_a_training_does_not_notice_that_the_server_was_restarted(postgresql, place):
    url = postgresql.url("mlflow")
    training = place.train(f"tracking.uri={url}").until("STEP", 12).signal(signal.SIGSTOP)  # it may take seconds
    postgresql.control("-m", "immediate", "restart")
    training.signal(signal.SIGCONT)
    assert training.end() == 0, training.err
    assert "unsynced" not in training.err
    assert histories(url, place.name, "val/loss") == [("FINISHED", [1, 2, 3])]
    assert not list(spools(place.home))


def test_a_server_that_was_away_for_epochs_gets_them_all_once(postgresql, settings, tmp_path, within):
    url = postgresql.url("mlflow")
    with begin(open_store(settings(url), home=tmp_path)) as run:
        run.log_metrics({"val/auroc": 0.1}, step=1)
        run.sender.settle(10)
        postgresql.control("-m", "immediate", "stop")
        for epoch in (2, 3):
            with within(3):
                run.log_metrics({"val/auroc": epoch / 10}, step=epoch)
        until(lambda: run.sender.problem)
        postgresql.control("start")
        run.log_metrics({"val/auroc": 0.4}, step=4)
    assert histories(url, "faults", "val/auroc") == [("FINISHED", [1, 2, 3, 4])]
    assert not list(spools(tmp_path))


OPEN = """
import sys
from pathlib import Path
from xray_pneumonia.tracking.store import TrackingSettings, open_store
settings = TrackingSettings(uri=sys.argv[1], experiment_name="x", run_name=None, system_metrics=False, required=True)
print(open_store(settings, home=Path(sys.argv[2])).experiment_id)
"""


def test_machines_that_begin_at_once_make_the_tables_once(postgresql, tmp_path):
    """As the tasks of a job array do on a new database; each has a home of its own."""
    command = [sys.executable, "-c", OPEN, postgresql.url("mlflow")]
    begun = [subprocess.Popen([*command, tmp_path / f"home {n}"], stdout=subprocess.PIPE) for n in range(4)]
    assert [one.communicate()[0] for one in begun] == [b"1\n"] * 4


@contextlib.contextmanager
def crowded(postgresql):
    """Hold every connection that the server has, at whosever expense."""
    import psycopg2

    held = [psycopg2.connect(postgresql.url("mlflow").replace("+psycopg2", ""))]
    held[0].autocommit = True
    end = time.monotonic() + 60
    while len(held) < 5:
        assert time.monotonic() < end, "others were always faster"
        try:
            held.append(psycopg2.connect(postgresql.url("mlflow").replace("+psycopg2", "")))
        except psycopg2.OperationalError:
            with held[0].cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE backend_type = 'client backend' AND NOT pid = ANY(%s)",
                    ([one.info.backend_pid for one in held],),
                )
    yield
    for one in held:
        one.close()


def until(question, seconds=120):
    end = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


def test_no_room_while_training_is_named_with_its_cure_and_waited_for(postgresql, settings, tmp_path, caplog, within):
    url = postgresql.url("mlflow")
    postgresql.configure("max_connections = 5")
    with begin(open_store(settings(url), home=tmp_path)) as run:
        run.log_metrics({"val/auroc": 0.1}, step=1)
        run.sender.settle(10)
        with crowded(postgresql):
            for epoch in (2, 3):
                with within(3):
                    run.log_metrics({"val/auroc": epoch / 10}, step=epoch)
            until(lambda: all(word in run.sender.problem for word in CURE))
        run.log_metrics({"val/auroc": 0.4}, step=4)
    assert histories(url, "faults", "val/auroc") == [("FINISHED", [1, 2, 3, 4])]
    assert not list(spools(tmp_path))


def test_no_room_at_the_start_is_named_with_its_cure_and_sent_later(postgresql, settings, tmp_path, caplog, within):
    url = postgresql.url("mlflow")
    open_store(settings(url), home=tmp_path)
    postgresql.configure("max_connections = 5")
    with crowded(postgresql):
        with within(40):
            store = open_or_offline(settings(url), home=tmp_path)
        assert store.experiment_id == ""
        assert all(word in caplog.text for word in CURE), caplog.text
        with begin(store) as run:
            run.log_metrics({"val/auroc": 0.1}, step=1)
    assert [(one.run_id, one.status, one.problem) for one in sync.sync(url, tmp_path)] == [(run.run_id, "FINISHED", "")]
    assert histories(url, "faults", "val/auroc") == [("FINISHED", [1])]


@pytest.mark.parametrize("said", ["sorry, too many clients already", "remaining connection slots are reserved for x"])
def test_whoever_asks_for_one_connection_too_many_is_told_the_cure(said):
    from xray_pneumonia.tracking.store_errors import classified

    error = RuntimeError(
        f"(psycopg2.OperationalError) connection to server failed: FATAL:  {said}\n(Background on ...)"
    )
    message = str(classified(error, uri="x"))
    assert said in message
    assert all(message.count(word) == 1 for word in CURE)
