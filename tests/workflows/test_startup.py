"""From a command to its first step: only what that step needs is imported before it."""

import re
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_module

from xray_pneumonia.config import build

# matplotlib is not among them: Lightning needs torchmetrics, which imports it wherever it is installed.
LATER = [
    "albumentations",
    "captum",
    "jinja2",
    "optuna",
    "plotly",
    "sklearn",
    "xray_pneumonia.evaluation.report.figures",
]
COMMAND = f"""
import sys
from xray_pneumonia import cli
from xray_pneumonia.errors import InputError
from xray_pneumonia.training.classifier import PneumoniaClassifier

def first_step(*_):
    print("imported:", *(name for name in {LATER} if name in sys.modules))
    raise InputError("that was the first step")

PneumoniaClassifier.on_train_batch_end = first_step
sys.exit(cli.main())
"""


FEW = """
import sys
from xray_pneumonia import cli
code = cli.main()
print("code", code, "imported:", *sorted(set(sys.argv[1].split(",")) & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("command", "code", "unwanted"),
    [
        (
            ["train", "optimizer.lr=-1"],
            2,
            "pytorch_lightning,torchmetrics,torchvision,mlflow,optuna,matplotlib,sklearn",
        ),
        (["train", "optimizer.lrr=1"], 2, "torch,pytorch_lightning,mlflow,optuna,matplotlib,pandas,scipy"),
        (["compare"], 2, "torch,pytorch_lightning,optuna,matplotlib,sklearn"),
        (["doctor"], "[01]", "torch,pytorch_lightning,optuna,matplotlib,sklearn,cv2,pandas,mlflow"),
        (["sweeps"], 0, "torch,pytorch_lightning,mlflow,matplotlib,sklearn,cv2"),
        (["download", "target=."], 2, "torch,pytorch_lightning,mlflow,matplotlib,sklearn,cv2,kagglehub"),
    ],
    ids=lambda value: value[0] + str(value[1:]) if isinstance(value, list) else None,
)
def test_a_command_imports_what_it_needs_alone(tmp_path, command, code, unwanted):
    program = FEW.replace("sys.argv[1]", repr(unwanted))
    done = subprocess.run([sys.executable, "-c", program, *command], cwd=tmp_path, capture_output=True, text=True)
    assert re.fullmatch(f"code {code} imported:", done.stdout.splitlines()[-1].strip()), done.stdout + done.stderr


def test_heavy_libraries_are_imported_where_they_are_used():
    modules = ("evaluation.metrics", "evaluation.report.build", "workflows.compare")
    later = ["sklearn", "scipy.stats", "matplotlib", "torch", "captum", "pytorch_lightning", "mlflow"]
    imports = ", ".join(f"xray_pneumonia.{module}" for module in modules)
    code = f"import sys, {imports}; print([name for name in {later} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_first_step_waits_for_nothing_that_a_later_one_needs(tiny, tmp_path):
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        cfg = compose("train", [*tiny, "augmentation=light"])
    build(cfg.data, build(cfg.augmentation)).prepare()  # audited once, with scikit-learn, then never again
    options = ["augmentation=light", "tracking.experiment_name=start", "resume=new"]
    command = [sys.executable, "-c", COMMAND, "train", *tiny, *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == "xray: that was the first step"
    assert done.stdout.splitlines()[-1].strip() == "imported:"
