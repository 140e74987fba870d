"""What the source must never do, found with `ast`: unpickle, evaluate, load with code in it."""

import ast
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
MODULES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").rglob("*.py"), *(ROOT / "conf").rglob("*.py")])
PICKLES = {"pickle", "cPickle", "_pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal", "jsonpickle"}
RUNS_CODE = {"eval", "exec", "compile", "__import__"}
LOADERS = {  # what may be called, and the keyword that makes it safe
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
NEVER = (
    "torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.jit.load", "torch.package", "pd.read_pickle",
    "pandas.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "mlflow.pyfunc.load_model",
    "mlflow.pytorch", "load_from_checkpoint", "os.system", "torch.serialization.add_safe_globals",
)  # fmt: skip


def calls(module):
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def named(module):
    return str(module.relative_to(ROOT))


@pytest.mark.parametrize("module", MODULES, ids=named)
def test_nothing_is_unpickled(module):
    tree = ast.parse(module.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in imported} & PICKLES
    for call, name in calls(module):
        assert name not in RUNS_CODE, f"line {call.lineno}"
        assert not any(name == one or name.startswith(f"{one}.") or name.endswith(f".{one}") for one in NEVER), name
        if LOADERS.get(name):
            keyword, value = LOADERS[name]
            given = {one.arg: ast.unparse(one.value) for one in call.keywords}
            assert given.get(keyword) == str(value), f"{name} in line {call.lineno} needs {keyword}={value}"


def test_the_rules_find_what_they_forbid(tmp_path):
    for text in (
        "import pickle", "from joblib import load", "torch.load(x)", "torch.load(x, weights_only=False)",
        "np.load(x)", "eval(x)", "torch.hub.load(x)", "Net.load_from_checkpoint(x)", "yaml.load(x)",
    ):  # fmt: skip
        (tmp_path / "wrong.py").write_text(text)
        with pytest.raises(AssertionError):
            test_nothing_is_unpickled(tmp_path / "wrong.py")


def test_the_versions_with_known_holes_are_excluded():
    listed = " ".join(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    for bound in ("torch>=2.10", "pytorch-lightning>=2.6.4", "hydra-core>=1.3.8", "pydicom>=3.0.2", "pillow>=12.3"):
        assert bound in listed
    assert tuple(map(int, version("hydra-core").split(".")[:3])) >= (1, 3, 8)


def test_the_environment_cannot_switch_safe_loading_off(tmp_path, monkeypatch):
    """(c) 68: torch obeys this variable only where weights_only is not given."""
    from xray_pneumonia.training.checkpoints import AtomicCheckpointIO

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary = tmp_path / "canary"
    torch.save({"state_dict": Touch(canary)}, tmp_path / "x.ckpt")
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported|safe"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt", weights_only=False)
    assert not canary.exists()


class Touch:
    """What a malicious pickle does."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
