"""No store, whatever it does, stops a training or loses what it logged (F18-F22, F24, F26-F28)."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from xray_pneumonia.errors import InputError
from xray_pneumonia.tracking import sync
from xray_pneumonia.tracking.run import start_run
from xray_pneumonia.tracking.spool import spools
from xray_pneumonia.tracking.store import open_or_offline, open_store
from xray_pneumonia.tracking.store_errors import StoreUnavailable

# MLflow's client keeps its connections until the interpreter takes them away.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*<socket.socket.*:pytest.PytestUnraisableExceptionWarning"),
]
EPOCHS = 4


def begin(store):
    return start_run(store, name="n", tags={"verb": "train"}, system_metrics=False)


@pytest.fixture
def log_epochs(within):
    """Log what a training logs in these epochs; it waits for nothing but the disk."""

    def log(run, epochs):
        for epoch in epochs:
            with within(2):
                _log(run, epoch)

    return log


def _log(run, epoch):
    run.log_metrics({"val/auroc": 0.5 + epoch / 100, "val/loss": float("nan")}, step=epoch)


def require_whole(uri, home, run_id):
    """All of it is in MLflow, once, and nothing waits on this machine; returns the run."""
    assert not [spool.folder for spool in spools(home)]
    client = MlflowClient(uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = [run for run in client.search_runs(experiments) if run_id in {run.info.run_id, run.data.tags["journal"]}]
    assert [run.info.status for run in runs] == ["FINISHED"]
    for name in ("val/auroc", "val/loss"):
        history = client.get_metric_history(runs[0].info.run_id, name)
        assert [metric.step for metric in history] == list(range(1, EPOCHS + 1))
    return runs[0]


def synced(uri, home):
    return [(one.run_id, one.status, one.problem) for one in sync.sync(uri, home)]


def once_left(uri, home):
    """Sync as soon as this process, whose last attempt may still be under way, lets go of the spool."""
    for _ in range(300):
        if done := synced(uri, home):
            return done
        time.sleep(0.2)
    raise AssertionError("nobody lets go")


def require_sent_later(uri, home, run_id):
    assert once_left(uri, home) == [(run_id, "FINISHED", "")]
    return require_whole(uri, home, run_id)


def test_f18_absent_at_start_is_decided_in_time(tmp_path, settings, within):
    gone = "http://127.0.0.1:9"
    with within(30), pytest.raises(StoreUnavailable, match=r"tracking\.required=false"):
        open_or_offline(settings(gone, required=True), home=tmp_path)
    with within(30):
        store = open_or_offline(settings(gone), home=tmp_path)
    assert store.experiment_id == ""


def test_f18_absent_at_start_a_whole_training_is_sent_later(xray, tiny, server, tmp_path):
    others = [override for override in tiny if not override.startswith("home=")]
    where = [f"home={tmp_path / 'h'}", f"tracking.uri={server.uri}"]
    refused = xray("train", *others, *where, "tracking.required=true")
    assert refused.code == 2
    assert "does not answer" in refused.err
    assert not (tmp_path / "h" / "journal").exists()
    outcome = xray("train", *others, *where)
    assert outcome.code == 0, outcome.err
    assert len(outcome.run_id) == 32
    assert "unsynced" in outcome.err
    assert "xray doctor sync" in outcome.err
    server.start()
    assert f"run {outcome.run_id}" in xray("doctor", *where).out
    told = xray("doctor", "sync", *where)
    assert told.code == 0, told.err
    client = MlflowClient(server.uri)
    [run] = client.search_runs([client.get_experiment_by_name("xray").experiment_id])
    assert run.info.run_id in told.out
    assert run.data.tags["journal"] == outcome.run_id
    assert run.info.status == "FINISHED"
    for name in ("val/auroc", "train/loss", "time/epoch_seconds"):
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, name)] == [1, 2]
    staged = tmp_path / "h" / "staged" / outcome.run_id
    fetched = Path(client.download_artifacts(run.info.run_id, "checkpoints/best.ckpt", str(tmp_path)))
    assert fetched.read_bytes() == (staged / "checkpoints/best.ckpt").read_bytes()
    assert str(client.get_logged_model(run.data.tags["model_id"]).status) == "READY"
    assert run.inputs.dataset_inputs[0].dataset.digest == run.data.tags["records_fingerprint"][:36]
    assert "nothing" in xray("doctor", "sync", *where).out
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_f19_dies_and_comes_back_while_training(server, settings, tmp_path, log_epochs):
    store = open_store(settings(server.start().uri), home=tmp_path)
    with begin(store) as run:
        log_epochs(run, [1])
        run.sender.settle(5)
        server.kill()
        log_epochs(run, [2, 3])
        server.start()
        log_epochs(run, [4])
    require_whole(server.uri, tmp_path, run.run_id)


def test_f19_dies_for_good(server, settings, tmp_path, caplog, log_epochs):
    store = open_store(settings(server.start().uri), home=tmp_path)
    with begin(store) as run:
        log_epochs(run, [1])
        server.kill()
        log_epochs(run, [2, 3, 4])
        run.path("config.yaml").write_text("seed: 0\n")
    assert "unsynced" in caplog.text
    assert synced(server.uri, tmp_path)[0][2]  # still away: it waits on
    server.start()
    require_sent_later(server.uri, tmp_path, run.run_id)
    assert (server.artifacts / "1" / run.run_id / "artifacts" / "config.yaml").read_text() == "seed: 0\n"


def test_f20_hangs(server, settings, tmp_path, within, log_epochs):
    store = open_store(settings(server.start().uri), home=tmp_path)
    with within(60), begin(store) as run:
        log_epochs(run, [1])
        server.signal(signal.SIGSTOP)
        with within(5):  # one call may wait a moment for a healthy store, and no other after it
            for number in range(5):
                run.set_tags({f"tag{number}": number})
        log_epochs(run, [2, 3, 4])
    server.signal(signal.SIGCONT)
    assert require_sent_later(server.uri, tmp_path, run.run_id).data.tags["tag4"] == "4"


@pytest.mark.parametrize("mood", ["429", "500", "slow", "cut", "garbage", "done then cut"])
def test_f21_answers_with_nonsense(proxy, settings, tmp_path, mood, within, log_epochs):
    store = open_store(settings(proxy.uri, name=mood), home=tmp_path)
    with within(90), begin(store) as run:
        log_epochs(run, [1])
        run.sender.settle(5)
        proxy.mood = mood
        log_epochs(run, [2, 3, 4])
    proxy.mood = "pass"
    require_sent_later(proxy.uri, tmp_path, run.run_id)


def test_f21_the_run_was_made_and_nobody_heard(proxy, settings, tmp_path, log_epochs):
    store = open_store(settings(proxy.uri, name="unheard"), home=tmp_path)
    proxy.mood = "done then cut"
    with begin(store) as run:
        log_epochs(run, range(1, EPOCHS + 1))
    proxy.mood = "pass"
    assert synced(proxy.uri, tmp_path) == [(run.run_id, "FINISHED", "")]
    client = MlflowClient(proxy.uri)
    home = client.get_experiment_by_name("unheard").experiment_id
    assert {one.data.tags["journal"] for one in client.search_runs([home])} == {run.run_id}
    finished = [one for one in client.search_runs([home]) if one.info.status == "FINISHED"]
    assert len(finished) == 1


@contextlib.contextmanager
def locked(path, seconds):
    """Hold a SQLite file exclusively for a while."""
    held = threading.Event()

    def hold():
        with contextlib.closing(sqlite3.connect(path, timeout=20, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            held.set()
            time.sleep(seconds)
            connection.execute("ROLLBACK")

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    yield thread
    thread.join()


def test_f22_locked_for_ten_seconds_nobody_notices(settings, tmp_path, caplog, log_epochs):
    store = open_store(settings(None), home=tmp_path)
    with begin(store) as run:
        log_epochs(run, [1])
        with locked(tmp_path / "mlflow.db", 10):
            log_epochs(run, [2, 3, 4])
    assert "unsynced" not in caplog.text
    require_whole(store.uri, tmp_path, run.run_id)


def test_f22_locked_for_a_minute_is_sent_later(settings, tmp_path, caplog, within, log_epochs):
    store = open_store(settings(None), home=tmp_path)
    with locked(tmp_path / "mlflow.db", 60):
        with within(50), begin(store) as run:
            log_epochs(run, range(1, EPOCHS + 1))
        assert "unsynced" in caplog.text
    require_sent_later(store.uri, tmp_path, run.run_id)


def test_f24_a_corrupt_database_is_left_as_it_is(settings, tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 8192)
    before = path.read_bytes()
    with pytest.raises(InputError, match="backup") as caught:
        open_or_offline(settings(None), home=tmp_path)
    assert not isinstance(caught.value, StoreUnavailable)
    assert path.read_bytes() == before


def test_f24_a_read_only_database_is_named(xray, settings, home, tmp_path, without_rights):
    open_store(settings(None), home=home)
    place = tmp_path / "h"
    place.mkdir()
    shutil.copy(home / "mlflow.db", place / "mlflow.db")
    (place / "mlflow.db").chmod(0o444)
    done = xray("train", "data=synthetic", "data.synthetic_patients=40", "data.image_size=16", f"home={place}")
    assert done.code == 2, done.err
    assert f"{place / 'mlflow.db'} is not writable" in done.err


def test_f26_artifacts_that_cannot_be_kept_there_are_kept_here(server, settings, tmp_path, log_epochs):
    store = open_store(settings(server.start().uri), home=tmp_path)
    shutil.rmtree(server.artifacts)
    server.artifacts.write_text("in the way")
    with begin(store) as run:
        log_epochs(run, range(1, EPOCHS + 1))
        run.path("checkpoints/best.ckpt").write_bytes(b"weights")
    assert store.client.get_run(run.run_id).info.status == "RUNNING"
    assert (run.folder / "checkpoints/best.ckpt").read_bytes() == b"weights"
    server.artifacts.unlink()
    server.artifacts.mkdir()
    require_sent_later(server.uri, tmp_path, run.run_id)
    assert store.client.list_artifacts(run.run_id, "checkpoints")[0].file_size == 7


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs root to mount a small disk")
def test_f26_a_full_artifact_store(server, settings, tmp_path, log_epochs):
    server.artifacts.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", server.artifacts], check=False).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        store = open_store(settings(server.start().uri), home=tmp_path)
        with begin(store) as run:
            log_epochs(run, range(1, EPOCHS + 1))
            run.path("checkpoints/best.ckpt").write_bytes(os.urandom(2**21))
        assert store.client.get_run(run.run_id).info.status == "RUNNING"
        subprocess.run(["mount", "-o", "remount,size=8m", server.artifacts], check=True)
        require_sent_later(server.uri, tmp_path, run.run_id)
    finally:
        server.kill()
        subprocess.run(["umount", server.artifacts], check=True)


def test_f26_an_artifact_that_changed_on_its_way_is_not_called_sent(settings, tmp_path, monkeypatch, home):
    store = open_store(settings(None), home=home)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", _only_below(home / "staged", Path.mkdir))
        with begin(store) as run:
            assert run.folder == home / "staged" / run.run_id
            patch.undo()
            run.path("config.yaml").write_text("seed: 0\n")
            patch.setattr(type(store.client), "log_artifact", _truncated)
    assert store.client.get_run(run.run_id).info.status == "RUNNING"
    assert (run.run_id, "FINISHED", "") in synced(store.uri, home)
    assert store.client.get_run(run.run_id).info.status == "FINISHED"


def _only_below(place, mkdir):
    def refuse(self, *arguments, **options):
        if "artifacts" in self.parts and place not in self.parents:
            raise PermissionError(13, "Permission denied", str(self))
        mkdir(self, *arguments, **options)

    return refuse


def _truncated(client, run_id, path, folder=None):
    place = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    place.mkdir(parents=True, exist_ok=True)
    (place / Path(path).name).write_bytes(Path(path).read_bytes()[:-1])


KILLED = """
import os, signal, sys
from pathlib import Path
from xray_pneumonia.tracking import sync
from xray_pneumonia.tracking.replay import Replay
from xray_pneumonia.tracking.spool import Spool
from xray_pneumonia.tracking.run import start_run
from xray_pneumonia.tracking.store import TrackingSettings, open_store

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

uri, home, how = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
settings = TrackingSettings(uri=uri, experiment_name="faults", run_name=None, system_metrics=False, required=False)
if how == "syncing":
    mark = Spool.mark_sent
    def doomed(spool, end, seen=[]):  # sent, and killed before it could be noted, at the third time
        seen.append(end)
        die() if len(seen) == 3 else mark(spool, end)
    Spool.mark_sent = doomed
    list(sync.sync(uri, home))
else:
    with start_run(open_store(settings, home=home), name="n", tags={"verb": "train"}, system_metrics=False) as run:
        for epoch in range(1, 5):
            run.log_metrics({"val/auroc": epoch / 10, "val/loss": 1.0}, step=epoch)
        run.path("config.yaml").write_text("seed: 0")
        run.sender.settle(20)
        print(run.run_id, flush=True)
        if how == "running":
            die()
        Replay._superseded = die  # asked just before the first file is sent
"""


def killed(uri, home, how):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, uri, str(home), how], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.strip()


def test_f27_killed_between_trained_and_uploaded(shared_server, tmp_path):
    client = MlflowClient(shared_server.uri)
    run_id = killed(shared_server.uri, tmp_path, "uploading")
    assert client.get_run(run_id).info.status == "RUNNING"
    assert client.list_artifacts(run_id) == []
    require_sent_later(shared_server.uri, tmp_path, run_id)
    assert [one.path for one in client.list_artifacts(run_id)] == ["config.yaml"]


def test_f27_killed_while_syncing(server, settings, tmp_path, log_epochs):
    store = open_or_offline(settings(server.uri), home=tmp_path)
    with begin(store) as run:
        for epoch in range(1, EPOCHS + 1):
            log_epochs(run, [epoch])
            run.set_tags({"epoch": epoch})
    server.start()
    killed(server.uri, tmp_path, "syncing")
    require_sent_later(server.uri, tmp_path, run.run_id)


def test_f28_doctor_finds_runs_whose_process_is_gone(xray, home, settings):
    uri = f"sqlite:///{home}/mlflow.db"
    run_id = killed(uri, home, "running")
    store = open_store(settings(None), home=home)
    client = MlflowClient(uri)
    with begin(store) as living:
        looked = xray("doctor", f"home={home}", "mark=false")
        assert f"run {run_id}" in looked.out
        assert client.get_run(run_id).info.status == "RUNNING"
        told = xray("doctor", f"home={home}")
        assert told.code == 0, told.err
        assert living.run_id not in told.out
        assert client.get_run(living.run_id).info.status == "RUNNING"
    run = client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert "its process is gone" in run.data.tags["reason"]
    xray("doctor", "sync", f"home={home}")
    assert client.get_run(run_id).info.status == "KILLED"
    assert run_id not in {spool.run_id for spool in spools(home)}
