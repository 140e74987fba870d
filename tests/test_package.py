"""The wheel and the first start: what a new machine meets."""

import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

ROOT = Path(__file__).parents[1]
SMALL = ["data=synthetic", "data.synthetic_patients=40", "data.image_size=32", "model.width=4", "trainer=smoke"]


@pytest.mark.slow
def test_the_wheel_trains_from_an_empty_folder(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "mlruns", "build", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source], check=True)
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    packages = next((environment / "lib").glob("python*/site-packages"))
    inherited = [path for path in sys.path if path.endswith("site-packages")] or site.getsitepackages()
    (packages / "dependencies.pth").write_text("\n".join(inherited))  # their own .pth files, ours too, stay unread
    wheel = next(tmp_path.glob("*.whl"))
    python = environment / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    clean = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "MLFLOW_TRACKING_URI"}}
    where = subprocess.run(
        [python, "-c", "import xray_pneumonia.conf as c; print(c.__file__)"], cwd=empty, env=clean, capture_output=True
    )
    assert str(environment) in where.stdout.decode()
    command = [environment / "bin" / "xray", "train", *SMALL]
    done = subprocess.run(command, cwd=empty, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("run_id=")
    assert (empty / "mlruns" / "mlflow.db").exists()


@pytest.mark.long
def test_jobs_that_start_at_once_on_an_empty_store_land_together(start, tmp_path):
    """As scripts/benchmarks/first_start.py has more of them do, round after round."""
    jobs = [start("train", *SMALL, "evaluation=quick", "tracking.system_metrics=false") for _ in range(3)]
    answers = [job.communicate() for job in jobs]
    assert [(job.returncode, "Traceback" in err) for job, (_, err) in zip(jobs, answers, strict=True)] == [
        (0, False)
    ] * 3
    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    runs = {one.name: len(client.search_runs([one.experiment_id])) for one in client.search_experiments()}
    assert runs == {"xray": 3, "Default": 0}


def test_the_lock_names_no_index_and_pins_every_package_with_hashes():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if line and line[0].isalnum()]
    assert all("==" in pin and pin.endswith("\\") for pin in pins)
    assert not any("index-url" in line and not line.startswith("#") for line in lines)
    assert not any("://" in line for line in lines if not line.lstrip().startswith("#"))
