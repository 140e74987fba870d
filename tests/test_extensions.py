"""Code of one's own: the examples of docs/examples train, are swept, evaluated, resumed, reproduced and predict."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from mlflow import MlflowClient

from xray_pneumonia import config, extensions
from xray_pneumonia.errors import InputError
from xray_pneumonia.signatures import problems

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
OWN = ["extensions=[my_models]", "--config-dir", "conf", "model=mine"]
EXPORT = pytest.importorskip("onnxscript")


@pytest.fixture
def examples(tmp_path):
    return shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def tiny(tiny):
    return [override for override in tiny if not override.startswith("model")]


@pytest.fixture(scope="module")
def outcomes():
    return {}


@pytest.fixture
def trained(xray, examples, tiny, outcomes):
    """One training of the net, loss, optimizer and schedule of the examples."""
    if not outcomes:
        own = [f"{group}._target_=my_models.{name}" for group, name in
               (("loss", "brier"), ("optimizer", "nadam"), ("scheduler", "stairs"))]  # fmt: skip
        outcomes["trained"] = xray("train", *tiny, *OWN, *own, "optimizer.lr=0.01", "scheduler.every=1")
    assert outcomes["trained"].code == 0, outcomes["trained"].err
    return outcomes["trained"]


def predictions(folder):
    return [float(row["probability"]) for row in csv.DictReader((folder / "predictions.csv").open())]


def test_a_run_keeps_hash_and_source_and_is_read_with_the_same_code_alone(xray, trained, home, xrays, tmp_path):
    run = MlflowClient(f"sqlite:///{home}/mlflow.db").get_run(trained.run_id)
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (folder / "extensions" / "my_models.py").read_bytes() == (EXAMPLES / "my_models.py").read_bytes()
    assert len(run.data.params["extensions.my_models"]) == 64
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert stored["optimizer"] == {"_target_": "my_models.nadam", "lr": 0.01}
    place, asks = f"home={home}", "add extensions=[my_models] to the command"
    for command in (["evaluate", f"run_id={trained.run_id}"], ["reproduce", f"run_id={trained.run_id}"]):
        refused = xray(*command, place)
        assert refused.code == 2
        assert asks in refused.err
    films = ["predict", f"model={trained.run_id}", f"input={xrays / 'test'}", place, "workers=1"]
    for name, more in {"graph": [], "code": ["extensions=[my_models]"]}.items():
        assert xray(*films, f"output={name}", *more).code == 0
    assert predictions(tmp_path / "graph") == pytest.approx(predictions(tmp_path / "code"), abs=1e-4)
    assert "heat maps need the net itself; use extensions=[my_models]" in xray(*films, "output=x", "explain=true").err
    own = ["extensions=[my_models.py]", place]
    assert xray("evaluate", f"run_id={trained.run_id}", "evaluation=quick", *own).code == 0
    again = xray("reproduce", f"run_id={trained.run_id}", *own)
    assert again.out.splitlines()[-1].endswith("verdict=bit-identical"), again.err
    text = (tmp_path / "my_models.py").read_text()
    (tmp_path / "my_models.py").write_text(text.replace("image.float() / 255", "image.float() / 256"))
    for verb in ("evaluate", "reproduce"):
        changed = xray(verb, f"run_id={trained.run_id}", *own)
        assert changed.code == 2
        for word in ("my_models: sha256", "-        return self.layers(image.float() / 255)", "+        return"):
            assert word in changed.err, changed.err


def test_a_stopped_training_asks_for_the_same_code(xray, trained, home, tmp_path):
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    client.update_run(trained.run_id, status="KILLED")
    for name in ("host", "pid", "born"):
        client.delete_tag(trained.run_id, name)
    place = f"home={home}"
    assert f"resume={trained.run_id}: was trained" in xray("train", f"resume={trained.run_id}", place).err
    done = xray("train", f"resume={trained.run_id}", place, "extensions=[my_models]")
    assert done.code == 0, done.err
    assert done.run_id == trained.run_id


@pytest.mark.slow
def test_a_sweep(xray, examples, tiny):
    done = xray(
        "train",
        "-m",
        *tiny,
        *OWN,
        "model._target_=my_models.Net",
        "model.width=2,3",
        "trainer.max_epochs=1",
        "sweep.name=own",
    )
    assert done.code == 0, done.err
    assert "trials=2" in done.out.splitlines()[-1]


REFUSED = {  # what the command says, and what is answered
    ("model._target_=my_models.Net", ""): "where it is code of your own, add extensions=[my_models] to the command",
    ("model._target_=my_models.Nett", "my_models"): "my_models.py has my_models.Net",
    ("model._target_=my_models.torch.nn.Linear", "my_models"): "my_models.py has my_models.Net",
    ("model._target_=my_models.Net model.width=wide", "my_models"): "model.width='wide': should be a valid integer",
    ("model._target_=my_models.Net model.wdth=3", "my_models"): "model.wdth=3: unknown key; did you mean model.width?",
    ("data._target_=my_models.Net", "my_models"): "data._target_='my_models.Net': not on the list",
    ("model._target_=odd.Wide", "odd"): "gives (2, 2) for 2 images, should give one logit each: (2,)",
    ("model._target_=odd.Scalar", "odd"): "gives () for one, should give (1,); write squeeze(1)",
    ("model._target_=odd.Raw", "odd"): "begin its forward with `image.float() / 255`",
    ("model._target_=odd.nothing", "odd"): "makes a NoneType, should make a torch.nn.Module",
    ("model._target_=odd.Rgb", "odd"): "but got 1 channels instead; take this shape",
    ("model._target_=odd.Mixed", "odd"): "in evaluation let no logit depend on other images",
    ("model._target_=odd.Likely", "odd"): "gives probabilities, should give logits; leave out its last sigmoid",
    ("model._target_=odd.Empty", "odd"): "model: Empty has no weight to train",
    ("optimizer._target_=odd.no_optimizer", "odd"): "makes a NoneType, should make a torch.optim.Optimizer",
    ("scheduler._target_=odd.no_schedule", "odd"): "makes a NoneType, should make a schedule of",
    ("loss._target_=odd.one", "odd"): "loss: one: cannot compute it from logits (B,) and labels",
    ("loss._target_=odd.broken", "odd"): "of 0 and 1: my loss broke, in ",  # ... odd.py, line 3
    ("loss._target_=odd.Plain", "odd"): "loss: Plain: cannot compute it from logits (B,) and labels",
    ("loss._target_=odd.each", "odd"): "gives tensor([",
    ("loss._target_=odd.Strange", "odd"): "loss: Strange: cannot compute it",
    ("", "missing"): "there is no module missing, neither installed nor in",
    ("", "missing.py"): "no such file",
    ("", "json"): "json is a module of Python or of this package",
    ("", "broken"): "cannot be imported: ZeroDivisionError",
    ("", "a-b"): "no name of a module",
    ("", "torchvision.py"): "two modules are called torchvision",
}
ODD = """
import os, torch
def broken(logits, labels): raise ValueError("my loss broke")
class Wide(torch.nn.Module):
    def __init__(self): super().__init__(); self.a = torch.nn.Parameter(torch.zeros(2))
    def forward(self, image): return image.float().mean((1, 2, 3))[:, None] * self.a
class Scalar(Wide):
    def forward(self, image): return (image.float().mean((1, 2, 3)) * self.a[0]).squeeze()
class Raw(torch.nn.Module):
    def __init__(self): super().__init__(); self.a = torch.nn.Conv2d(1, 1, 3)
    def forward(self, image): return self.a(image)
class Rgb(Raw):
    def __init__(self): super().__init__(); self.a = torch.nn.Conv2d(3, 1, 3)
    def forward(self, image): return self.a(image.float())
class Mixed(Raw):
    def forward(self, x): return torch.nn.BatchNorm2d(1, track_running_stats=False)(self.a(x / 255)).amax((2, 3))
class Likely(Raw):
    def forward(self, image): return self.a(image / 255).mean((2, 3)).sigmoid()
class Empty(torch.nn.Module):
    def forward(self, image): return image.float().mean((1, 2, 3))
class Plain: pass
def one(logits): return logits.mean()
def no_optimizer(parameters): pass
def no_schedule(optimizer): pass
def nothing(): pass
def each(logits, labels): return (logits - labels) ** 2
class Strange(torch.nn.Module):
    def forward(self, logits): return logits.mean()
"""


@pytest.mark.parametrize(("overrides", "module"), REFUSED)
def test_what_is_wrong_is_said_before_any_data_are_read(xray, examples, tmp_path, overrides, module):
    (tmp_path / "odd.py").write_text(ODD)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "torchvision.py").write_text("")
    done = xray("train", "data.root=none", f"extensions=[{module}]", "trainer=cpu", *overrides.split())
    assert done.code == 2, done.err
    assert REFUSED[overrides, module] in done.err, done.err
    assert ("odd.py, line 3\n" in done.err) == ("broken" in overrides), done.err
    assert "Traceback" not in done.err


def test_targets_are_what_the_sources_define_and_hashes_follow_what_they_import(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("from os import system\nfrom .part import Net, _hidden\n")
    (tmp_path / "pack" / "part.py").write_text("import beside\nclass Net: pass\ndef _hidden(): pass\n")
    (tmp_path / "beside.py").write_text("a = 1\n")
    (tmp_path / "other.py").write_text("")
    first = extensions.load(["pack"])
    assert extensions.targets() == ["pack.Net"]
    assert sorted(extensions.sources()) == ["beside.py", "pack/__init__.py", "pack/part.py"]
    assert extensions.find("pack.part.Net")
    assert not extensions.find("pack.system")
    assert not extensions.find("pack.part._hidden")
    (tmp_path / "other.py").write_text("# changed\n")
    assert extensions.load(["pack"]) == first
    (tmp_path / "beside.py").write_text("a = 2\n")
    assert extensions.load(["pack"]) != first
    assert config.locate("pack.Net").__module__ == "pack.part"
    extensions.load([])
    assert not extensions.find("pack.Net")


def test_an_installed_package_needs_no_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme_nets.py").write_text("class Net: pass\n")
    (tmp_path / "acme-1.dist-info").mkdir()
    (tmp_path / "acme-1.dist-info" / "METADATA").write_text("Name: acme\nVersion: 1\n")
    (tmp_path / "acme-1.dist-info" / "entry_points.txt").write_text("[xray_pneumonia.extensions]\nacme = acme_nets\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert [*extensions.load([])] == ["acme_nets"]


def whole(width: int, *, rate: float = 0.1, pair: tuple[float, float] = (0, 1), odd: torch.Tensor = None, **more): ...


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"width": 1}, ""), ({"width": 1, "pair": [0.1, 2.0], "odd": 3, "extra": 1}, ""), ({}, "lacks width"),
        ({"width": 1.5}, "width=1.5: should be a valid integer"), ({"width": 1, "rate": "x"}, "rate='x'"),
    ],
)  # fmt: skip
def test_signatures_of_others_are_read_as_they_are(values, found):
    assert found in "".join(problems(values, whole, prefix="", handed_in=()))
    assert bool(found) == bool(problems(values, whole, prefix="", handed_in=()))


def test_names_are_a_list():
    with pytest.raises(InputError, match="should be a list"):
        extensions.load({"my_models": "0" * 64})
