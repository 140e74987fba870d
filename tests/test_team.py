"""The team's server from nothing: PostgreSQL, S3 (moto's server), a login; an outage, a backup and its restore."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from urllib.request import urlopen

import optuna
import pytest
from mlflow import MlflowClient

SERVER = Path(__file__).parents[1] / "scripts" / "cluster" / "server.sh"
STARTING = 120.0  # seconds


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until_it_answers(url, process):
    end = time.monotonic() + STARTING
    while time.monotonic() < end and process.poll() is None:
        try:
            return urlopen(url, timeout=5).read()
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"{url} does not answer")


@pytest.fixture
def s3(monkeypatch):
    """An S3 on this machine, and the environment by which `aws` and MLflow find it."""
    program = shutil.which("moto_server", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None or shutil.which("aws") is None:
        pytest.skip("needs moto's server and aws: pip install 'moto[server]' awscli")
    pytest.importorskip("boto3")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", url)
    until_it_answers(f"{url}/moto-api/", process)
    yield ["aws", "--endpoint-url", url, "s3"]
    process.terminate()
    process.wait(30)


class Team:
    """The commands of the page, each run as it stands there."""

    def __init__(self, file, port):
        self.file, self.url = file, f"http://127.0.0.1:{port}"
        self.process = None

    def __call__(self, action, *arguments):
        done = subprocess.run([SERVER, action, self.file, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self):
        with self.file.with_suffix(".log").open("a") as log:
            command = [SERVER, "start", self.file]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        until_it_answers(f"{self.url}/health", self.process)

    def stop(self):
        self.process.terminate()
        assert self.process.wait(60) in {0, 143}  # and with it all that it started
        with pytest.raises(OSError, match="refused"):
            urlopen(f"{self.url}/health", timeout=5)


@pytest.fixture
def team(postgresql, s3, tmp_path, monkeypatch):
    """A server that is not begun yet."""
    pytest.importorskip("flask_wtf")
    port = free_port()
    settings = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_BACKEND_STORE_URI": postgresql.url("mlflow"),
        "XRAY_SWEEP_STORAGE": postgresql.url("sweeps"),
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://team/mlflow",
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port}",
        "MLFLOW_PORT": str(port),
        "MLFLOW_WORKERS": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    made = Team(tmp_path / "team.env", port)
    yield made
    if made.process and made.process.poll() is None:
        os.killpg(made.process.pid, signal.SIGKILL)


@pytest.mark.long
def test_from_nothing_to_runs_of_a_team_through_an_outage_and_a_lost_disk(
    team, s3, postgresql, xray, tiny, tmp_path, monkeypatch
):
    subprocess.run([*s3, "mb", "s3://team"], check=True, capture_output=True)
    team("init")
    team.start()
    login = dict(re.findall(r"(MLFLOW_TRACKING_\w+)=(\S+)", team("user", "anna")))
    for name in ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name)  # clients know nothing of them
    for name, value in {**login, "MLFLOW_TRACKING_URI": team.url}.items():
        monkeypatch.setenv(name, value)
    own = [*tiny, f"home={tmp_path}/home"]
    first = xray("train", *own)
    assert first.code == 0, first.err
    done = xray("evaluate", f"run_id={first.run_id}", "split=val", f"home={tmp_path}/other", "evaluation=quick")
    assert done.code == 0, done.err
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    assert xray("train", *own).code == 2
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", login["MLFLOW_TRACKING_PASSWORD"])

    team.stop()
    second = xray("train", *own, "seed=1")
    assert "doctor sync" in second.err
    team.start()
    synced = xray("doctor", "sync", f"home={tmp_path}/home")
    assert synced.code == 0, synced.err

    search = ["optimizer.lr=tag(log,interval(1e-4,1e-2))", "sweep.n_trials=8", "sweep.name=team", "workers=4"]
    swept = xray("train", "-m", *own, *search)
    assert swept.code == 0, swept.err
    trials = optuna.load_study(study_name="team", storage=postgresql.url("sweeps")).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 8
    assert len({trial.user_attrs["worker"]["pid"] for trial in trials}) > 1
    for verb in (["reproduce"], ["register", "alias=champion"]):
        done = xray(*verb, f"run_id={first.run_id}", f"home={tmp_path}/home")
        assert done.code == 0, done.err

    client = MlflowClient(team.url)
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = {run.info.run_id: run for run in client.search_runs(experiments)}
    verbs = Counter(run.data.tags["verb"] for run in runs.values())
    assert verbs == {"evaluate": 1, "reproduce": 1, "sweep": 1, "train": 2 + 8}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {run.info.artifact_uri.partition(":")[0] for run in runs.values()} == {"mlflow-artifacts"}

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    team("backup", str(tmp_path / "backup"))
    team.stop()
    for action in ("dropdb", "createdb"):
        postgresql._run(action, "-h", "127.0.0.1", "-p", str(postgresql.port), "-U", "postgres", "mlflow")
    subprocess.run([*s3, "rm", "--recursive", "s3://team"], check=True, capture_output=True)
    team("restore", str(tmp_path / "backup"))
    team("upgrade")
    team.start()
    assert {run.info.run_id for run in client.search_runs(experiments)} == set(runs)
    kept = client.download_artifacts(first.run_id, "config.yaml", str(tmp_path))
    assert f"home: {tmp_path}/home" in Path(kept).read_text()
    assert client.get_model_version_by_alias("xray", "champion").run_id == first.run_id
    team.stop()
