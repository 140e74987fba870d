"""The tree is the architecture: who imports whom, one door for each heavy library, nothing left out of the wheel."""

import ast
import tomllib
from importlib import resources
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from xray_pneumonia.config import TARGETS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "xray_pneumonia"
MODULES = sorted(SOURCE.rglob("*.py"))
DOORS = {
    "mlflow": {"tracking"},
    "hydra": {"config.py", "compose.py", "sweeps"},
    "albumentations": {"data/augment/augmentation.py"},
    "cv2": {"data/augment/transforms.py", "data/loaders.py"},
    # Figures are made in evaluation; pages and workflows name the type of what they pass on.
    "matplotlib": {
        "evaluation/report/figures.py",
        "evaluation/report/assessment_figures.py",
        "evaluation/report/build.py",
        "workflows/explore.py",
    },
    "pydicom": {"data/images/dicom.py"},
    "kagglehub": {"data/download.py"},
    "optuna": {"sweeps"},
    "onnx": {"inference/onnx.py"},
    "onnxscript": {"inference/onnx.py"},
    "onnxruntime": {"inference/onnx.py"},
    "captum": {"evaluation/gradcam.py"},
}
LEAVES = {"errors", "ranges"}
FORBIDDEN = {  # room -> rooms it must not know
    "data": {"models", "training", "evaluation", "tracking", "workflows", "config", "cli"},
    "models": {"data", "training", "evaluation", "tracking", "workflows", "config", "cli"},
    "evaluation": {"data", "models", "training", "tracking", "workflows", "config", "cli"},
    "inference": {"training", "tracking", "sweeps", "workflows", "compose", "cli"},
    "sweeps": {"data", "models", "inference", "training", "workflows", "compose", "cli"},
    "training": {"data", "models", "tracking", "workflows", "config", "cli"},
    "tracking": {"data", "models", "training", "evaluation", "workflows", "config", "cli"},
}


def imports(module: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_rooms_know_only_what_they_may(module: Path):
    room = module.relative_to(SOURCE).parts[0]
    known = {name.split(".")[1] for name in imports(module) if name.startswith("xray_pneumonia.")}
    assert not known & FORBIDDEN.get(room, set()), f"{module.name} reaches into {known}"


@pytest.mark.parametrize("library", DOORS)
def test_each_heavy_library_has_one_door(library: str):
    users = {
        str(module.relative_to(SOURCE))
        for module in MODULES
        if any(n.split(".")[0] == library for n in imports(module))
    }
    inside = {user for user in users for door in DOORS[library] if user == door or user.startswith(f"{door}/")}
    assert users == inside
    assert users, "a door that nobody uses is not needed"


def test_the_wheel_lists_every_package():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    python = {".".join(["xray_pneumonia", *p.parent.relative_to(SOURCE).parts]) for p in SOURCE.rglob("__init__.py")}
    configs = {
        ".".join(["xray_pneumonia.conf", *p.parent.relative_to(ROOT / "conf").parts])
        for p in ROOT.glob("conf/**/*.yaml")
    }
    assert python | configs <= listed


def test_every_target_of_the_configs_may_be_built_and_every_allowed_target_exists():
    used = set()
    for file in (ROOT / "conf").rglob("*.yaml"):
        lines = map(str.strip, file.read_text().splitlines())
        used |= {line.split(": ")[1] for line in lines if line.startswith("_target_: ")}
    assert used == TARGETS


def test_no_file_is_named_after_nothing():
    vague = {"utils", "util", "helpers", "common", "misc", "base", "manager"}
    assert not vague & {module.stem for module in MODULES}


def test_a_constructors_number_stands_in_its_config_alone():
    """Keyword-only parameters of what configs build have no default: the number would stand twice."""
    import inspect

    from xray_pneumonia.config import locate

    for name in TARGETS:
        for parameter in inspect.signature(locate(name)).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                assert parameter.default is parameter.empty, f"{name}: {parameter.name}"


def test_configs_load_as_a_package():
    assert OmegaConf.load(str(resources.files("xray_pneumonia.conf") / "train.yaml")).monitor == "val/auroc"
