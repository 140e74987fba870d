"""Files to start from on a cluster: they parse, ask for what a sweep on many machines needs, and hold no secret."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).parents[1] / "scripts" / "cluster"
SCRIPTS = sorted(path for path in CLUSTER.iterdir() if path.suffix != ".yaml")


def test_the_job_of_kubernetes():
    secret, job = yaml.safe_load_all((CLUSTER / "job.yaml").read_text())
    assert (secret["kind"], secret["apiVersion"]) == ("Secret", "v1")
    assert {"XRAY_SWEEP_STORAGE", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD"} <= set(secret["stringData"])
    assert (job["kind"], job["apiVersion"], job["spec"]["completionMode"]) == ("Job", "batch/v1", "Indexed")
    assert job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # what backoffLimitPerIndex and podFailurePolicy ask for
    [container] = pod["containers"]
    assert container["args"][:2] == ["train", "-m"]
    assert container["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_the_job_of_kubernetes_follows_the_published_schema(version):
    schemas = pytest.importorskip("kubernetes_validate", reason="needs the schemas: pip install kubernetes-validate")
    for document in yaml.safe_load_all((CLUSTER / "job.yaml").read_text()):
        schemas.validate(document, version, strict=True)


def test_the_array_of_slurm():
    text = (CLUSTER / "sweep.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert {"array", "time", "cpus-per-task", "mem", "requeue", "open-mode"} <= set(options)
    assert options["signal"] == "B:TERM@120"
    assert 'xray train -m "home=$home" "$@"' in text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script):
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)
    assert os.access(script, os.X_OK)


def catches_term(pid):
    """Says whether a process has a handler for TERM by now, from the mask of signals that Linux shows."""
    caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize(("queued", "code"), [(True, 143), (False, 143), (False, 0)])
def test_a_task_is_queued_again_where_its_time_ends(tmp_path, queued, code):
    """TERM reaches the batch shell alone, which passes it on; other ends are final."""
    stop = "trap 'exit 143' TERM; touch begun; while :; do sleep 0.05; done" if queued else f"exit {code}"
    for name, body in {"xray": stop, "scontrol": 'echo "$@" > queued'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    shared = {"XRAY_SWEEP_STORAGE": "postgresql://h/s", "MLFLOW_TRACKING_URI": "http://h"}
    environment = {**slurm, **shared, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen([CLUSTER / "sweep.sbatch"], env=environment, cwd=tmp_path)
    if queued:
        while not ((tmp_path / "begun").exists() and catches_term(process.pid)):
            assert process.poll() is None
        process.terminate()
    assert process.wait(20) == code
    assert (tmp_path / "queued").exists() == queued
    if queued:
        assert (tmp_path / "queued").read_text().split() == ["requeue", "7_2"]


def test_the_settings_of_the_server_are_for_one_user_and_hold_new_secrets(tmp_path):
    server, file = CLUSTER / "server.sh", tmp_path / "team.env"
    environment = {**os.environ, "MLFLOW_SERVER_ALLOWED_HOSTS": "mlflow.hospital.org"}
    subprocess.run([server, "init", file], env=environment, check=True, capture_output=True)
    assert file.stat().st_mode & 0o077 == 0
    settings = dict(re.findall(r"^(\w+)='(.*)'$", file.read_text(), re.MULTILINE))
    assert settings["MLFLOW_SERVER_ALLOWED_HOSTS"] == "mlflow.hospital.org"
    secrets = {settings[f"MLFLOW_{name}"] for name in ("AUTH_ADMIN_PASSWORD", "FLASK_SERVER_SECRET_KEY")}
    assert len(secrets) == 2
    assert all(len(secret) > 30 for secret in secrets)
    assert subprocess.run([server, "init", file], check=False, capture_output=True).returncode == 2  # keeps the first
    assert subprocess.run([server, "backup", file], check=False, capture_output=True).returncode == 2  # where to?
