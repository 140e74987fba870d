"""The command line: exit codes, one clear line, nothing written for wrong input."""

import ast
import errno
import os
import signal
import subprocess
import sys
from argparse import Namespace
from importlib.metadata import version
from pathlib import Path

import pytest

from xray_pneumonia import __version__, cli
from xray_pneumonia.errors import raise_if_stopped


def test_help_lists_the_verbs_and_imports_nothing_heavy():
    code = "import sys; sys.argv = ['xray', '--help']; from xray_pneumonia.cli import main; main(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(verb in done.stdout for verb in cli.VERBS)
    assert not {"torch", "hydra", "mlflow", "pandas", "numpy"} & set(done.stdout.split())


@pytest.mark.parametrize(("arguments", "code"), [((), 2), (("--help",), 0), (("--version",), 0), (("trian",), 2)])
def test_usage(xray, arguments, code):
    outcome = xray(*arguments)
    assert outcome.code == code
    if arguments == ("trian",):
        assert "did you mean train?" in outcome.err
    if arguments == ("--version",):
        assert outcome.out.strip() == f"xray {__version__}"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("verb", "code", "message"),
    [
        ("--help", 1, "xray: standard output: No space left on device"),
        ("sweeps", 1, "xray: standard output: No space left on device"),
        ("trian", 2, "did you mean train?"),  # prints nothing there
    ],
)
def test_a_full_standard_output_is_named(tmp_path, verb, code, message, unbuffered):
    with Path("/dev/full").open("w") as full:
        done = _command(verb, cwd=tmp_path, stdout=full, unbuffered=unbuffered)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("verb", ["--help", "sweeps"])
def test_a_reader_that_is_gone_ends_it_without_a_word(tmp_path, verb, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    done = _command(verb, cwd=tmp_path, stdout=writer, unbuffered=unbuffered)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def _command(verb, *, cwd, stdout, unbuffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "xray_pneumonia.cli", verb]
    return subprocess.run(command, cwd=cwd, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_full_disk_is_named_with_its_cure(xray, tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("xray_pneumonia.workflows.sweeps.main", fail)
    monkeypatch.setattr("xray_pneumonia.compose.disk_usage", lambda place: Namespace(free=7 + (place != tmp_path)))
    done = xray("sweeps", f"home={tmp_path}/not/there")
    assert done.code == 1
    assert f"no space is left on the disk of {tmp_path} (7 bytes free); make room" in done.err


WRONG = {
    "misspelt key": (["optimizer.lrr=1"], "optimizer.lrr=1: unknown key; did you mean optimizer.lr"),
    "misspelt group": (["modle=cnn"], "modle=cnn: unknown key"),
    "misspelt choice": (["model=cnnn"], "did you mean cnn?"),
    "misspelt experiment": (["experiment=notebook_fnal"], "did you mean notebook_final"),
    "broken grammar": (["optimizer.lr=="], "optimizer.lr=="),
    "added key": (["+model.dropuot=0.1"], "model.dropuot=0.1: unknown key; did you mean model.dropout?"),
    "word for a number": (["optimizer.lr=1e-3x"], "optimizer.lr='1e-3x'"),
    "fraction of an epoch": (["trainer.max_epochs=2.5"], "trainer.max_epochs=2.5"),
    "negative": (["optimizer.lr=-1"], "optimizer.lr=-1: should be greater than 0"),
    "zero": (["optimizer.lr=0"], "optimizer.lr=0"),
    "not a number": (["optimizer.lr=nan"], "optimizer.lr=nan"),
    "infinite": (["optimizer.lr=inf"], "optimizer.lr=inf"),
    "huge": (["optimizer.lr=1e308"], "optimizer.lr=1e+308"),
    "null": (["optimizer.lr=null"], "optimizer.lr=None"),
    "missing value": (["data.root=???"], "data.root"),
    "circular": (["seed=${mode}", "mode=${seed}"], "does not resolve"),
    "unknown interpolation": (["seed=${nothing}"], "nothing"),
    "probability": (["augmentation.blur=2"], "augmentation.blur=2"),
    "list of means": (["model.mean=[0.1,0.2,0.3]"], "model.mean=[0.1, 0.2, 0.3]"),
    "no pixels": (["data.image_size=0"], "data.image_size=0"),
    "no images a batch": (["data.batch_size=0"], "data.batch_size=0"),
    "fold beyond folds": (["data.folds=3", "data.fold=3"], "data.folds=3 data.fold=3"),
    "validation of everything": (["data.val_fraction=1"], "data.val_fraction=1"),
    "metric never logged": (["monitor=val/foo"], "monitor='val/foo'"),
    "one class weight": (["loss.class_weights={NORMAL: 3}"], "lacks PNEUMONIA"),
    "no such weights": (["loss.class_weights=heavy"], "loss.class_weights='heavy'"),
    "no such device": (["trainer.accelerator=cuda:9"], "trainer.accelerator='cuda:9'"),
    "another maker's device": (["trainer.accelerator=mps"], "should be 'auto', 'cpu' or 'gpu'"),
    "ten thousand processes": (["data.num_workers=10000"], "data.num_workers=10000: should be less than"),
    "fewer processes than none": (["data.num_workers=-1"], "data.num_workers=-1"),
    "no GPU": (["trainer=gpu", "trainer.devices=9"], "this machine has"),
    "target of the system": (["model._target_=os.system"], "model._target_='os.system': not on the list"),
    "target by another name": (["model._target_=logging.os.system"], "not on the list"),
    "loader of pickles": (["model._target_=joblib.load"], "not on the list"),
    "target in a list": (
        ["model=cnn", "model.filters=[{_target_: os.getcwd}]"],
        "model.filters.0._target_='os.getcwd'",
    ),
    "positional arguments": (["+model._args_=[1]"], "model._args_=[1]: unknown key"),
    "partial": (["+loss._partial_=true"], "loss._partial_"),
    "unpickled rerun": (["--experimental-rerun", "x.pickle"], "unpickles a file"),
    "unpickled rerun in short": (["--exp=x.pickle"], "unpickles a file"),
    "two equals signs": (["loss.gamma=a b=c"], "loss.gamma=a b=c: cannot be read"),
    "no value": (["data.root"], "data.root: cannot be read; say key=value"),
    "an option of another tool": (["--lr=1e-3"], "--lr=1e-3: keys are set without dashes: optimizer.lr=1e-3; see"),
    "Lightning's debugging": (["trainer.fast_dev_run=true"], "unknown key; say trainer=smoke"),
    "the same, added": (["+trainer.fast_dev_run=true"], "trainer.fast_dev_run=True: unknown key; say trainer=smoke"),
    "a template's logger": (["logger=csv"], "unknown key; say loggers=[{_target_: "),
    "a checkpoint": (["ckpt_path=x"], "unknown key; say resume=RUN_ID"),
    "a rate without its group": (["lr=1"], "lr=1: unknown key; say optimizer.lr"),
    "three classes": (["data.classes=[a,b,c]"], "unknown key; say data.positive=[...] data.negative=[...]"),
    "one class without brackets": (
        ["data.positive=viral"],
        "data.positive='viral': should be a valid list; write [",
    ),
    "a group as a mapping": (
        ["model={_target_:mine.Net,channels:4}"],
        "is set key by key: model._target_=mine.Net model.channels=4",
    ),
    "a rate by its long name": (["optimizer.learning_rate=1"], "unknown key; say optimizer.lr"),
    "a rate added at the top": (["+lr=1"], "lr=1: unknown key; say optimizer.lr"),
    "devices": (["devices=2"], "unknown key; say trainer.devices"),
    "GPUs": (["gpus=2"], "unknown key; say trainer=gpu trainer.devices=N"),
    "a batch": (["batch_size=2"], "unknown key; say data.batch_size"),
    "epochs": (["max_epochs=2"], "unknown key; say trainer.max_epochs"),
    "a backbone": (["model=densenet"], "no such choice; say model=torchvision model.backbone=densenet121. There are"),
    "half a quote": (["data.root='x"], "data.root='x: cannot be read"),
    "letters from elsewhere": (["monitor=Röntgen bild"], """stands in quotes of its own: 'key="a (b)"'"""),
    "a folder with letters from elsewhere": (["data.root=Röntgen (1) = b"], "Röntgen (1) = b: no such folder"),
    "a folder that is a number": (["data.root=2024_01"], "2024_01: no such folder"),
    "a folder of runs that is a number": (["home=2024_02", "data.root=07"], "07: no such folder"),
    "letters in quotes": (['data.root="Röntgen = bild"'], "Röntgen = bild: no such folder"),
    "a line break": (["data.root=a\nb"], "data.root=a\nb: cannot be read"),
    "the disk's root for Hydra": (["data.root=nowhere", "++hydra.run.dir=/"], "xray download"),
    "no folder": (["data.root=nowhere"], "xray download"),
    "a folder that is looked up in vain": (["data.root=${nothing}"], "the config does not resolve: Interpolation key"),
    "no choice": (["model=null"], "model=null: names no choice"),
    "a number for a choice": (["data=5"], "data=5: names no choice"),
    "an option of Hydra's without its other": (["--resolve"], "can only be used in conjunction with --cfg"),
    "an experiment's file that is not there": (["experiment=my/own.yaml"], "experiment=my/own.yaml: there is no such"),
    "a group that is taken away": (["~model", "model.width=4"], "replaced model, which has it"),
    "a class that is taken away": (["~trainer._target_"], "lacks _target_"),
    "a callback without a class": (["callbacks=[{a: 1}]"], "{'a': 1}: lacks _target_"),
    "a logger without a class": (["loggers=[{}]"], "{}: lacks _target_"),
    "files to sweep over": (["-m", "seed=glob(*)"], "seed=glob(*): glob(...) is not searched"),
    "a long experiment": ([f"tracking.experiment_name={'x' * 501}"], "should have at most 500 characters"),
    "a database that nothing keeps": (["data=synthetic", "tracking.uri=sqlite:///:memory:"], "gone with the command"),
    "a database where none can be": (["data=synthetic", "tracking.uri=sqlite:////proc/x.db"], "cannot be used: /proc"),
    "a server without a name": (["data=synthetic", "tracking.uri=http://:5000"], "is no address"),
    "a port that is none": (["data=synthetic", "tracking.uri=https://host:99999"], "write https://HOST:PORT"),
    "half an address": (["data=synthetic", "tracking.uri=http://[::1"], "is no address"),
    "a store that MLflow has not": (["data=synthetic", "tracking.uri=s3://bucket"], "the store refuses this"),
    "plain files for runs": (["data=synthetic", "tracking.uri=file:./mlruns"], "sqlite:///"),
    "old scheme": (["data=synthetic", "tracking.uri=postgres://u:secret@h/db"], "postgresql://"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_ends_with_2_one_message_and_nothing_written(xray, tmp_path, monkeypatch, case):
    overrides, expected = WRONG[case]
    if "data=synthetic" in overrides:
        overrides = [*overrides, "data.synthetic_patients=20", "data.image_size=16", f"home={tmp_path / 'elsewhere'}"]
    outcome = xray("train", *overrides)
    assert outcome.code == 2
    message = outcome.err[outcome.err.index("xray: ") :]
    assert expected in message
    assert "Traceback" not in outcome.err
    assert "secret" not in outcome.err
    assert outcome.out == ""
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.parametrize(
    "text", ["seed: 1\nseed: 2\n", "seed:\t1\n\t- x\n", "seed: !!python/object/apply:os.getcwd []\n", "seed: [1\n"]
)
def test_config_files_that_are_no_plain_yaml(xray, tmp_path, text):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "odd.yaml").write_text("# @package _global_\n" + text)
    outcome = xray("train", "--config-dir", str(tmp_path / "mine"), "experiment=odd")
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "mlruns").exists()


def test_a_key_misspelt_in_a_file_is_found_too(xray, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "odd.yaml").write_text("# @package _global_\ndata: {bach_size: 3}\nmonitr: x\n")
    outcome = xray("train", "--config-dir", str(tmp_path / "mine"), "experiment=odd")
    assert outcome.code == 2
    assert "data.bach_size=3: unknown key; did you mean data.batch_size" in outcome.err
    assert "monitr='x': unknown key; did you mean monitor" in outcome.err


def test_all_problems_come_at_once(xray):
    outcome = xray("train", "optimizer.lr=-1", "trainer.max_epochs=0", "model.dropout=7")
    assert outcome.code == 2
    assert all(key in outcome.err for key in ("optimizer.lr=-1", "trainer.max_epochs=0", "model.dropout=7"))


def test_no_foreign_code_runs_from_a_config(xray, tmp_path):
    canary = tmp_path / "canary"
    outcome = xray("train", "model._target_=pathlib.Path.touch", f"+model.path={canary}")
    assert outcome.code == 2
    assert not canary.exists()


def test_doctor_names_a_package_that_the_pins_exclude(xray, monkeypatch):
    installed = version
    monkeypatch.setattr(
        "xray_pneumonia.workflows.doctor.version", lambda name: "2.9+cpu" if name == "torch" else installed(name)
    )
    outcome = xray("doctor")
    assert outcome.code == 1
    assert "torch 2.9+cpu: install torch>=2.10" in outcome.err
    assert "problems=1" in outcome.out


def test_debugging_shows_the_traceback(xray, monkeypatch):
    monkeypatch.setenv("XRAY_DEBUG", "1")
    assert "Traceback" in xray("train", "data.root=nowhere").err


def test_our_own_bugs_end_with_1(xray, monkeypatch):
    from xray_pneumonia.workflows import download

    monkeypatch.setattr(download, "install", lambda *_: 1 / 0)
    outcome = xray("download")
    assert outcome.code == 1
    assert "ZeroDivisionError" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["++hydra.run.dir=/proc/no/a"], "hydra.run.dir=/proc/no/a: cannot be used: No such file or directory"),
        (["home=/proc/no"], "home=/proc/no: cannot be used: No such file or directory"),
        (["-m", "home=/proc/no", "seed=1,2"], "home=/proc/no: cannot be used: No such file or directory"),
        (["home=/dev/null", "data=synthetic"], "home=/dev/null: cannot be used: /dev/null/synthetic: Not a directory"),
        (["home=/proc", "data=synthetic"], "home=/proc: cannot be used: /proc/synthetic: No such file or directory"),
        (["home=OURS", "tracking.uri=sqlite:////dev/null/x"], "tracking.uri=sqlite:////dev/null/x: cannot be used: "),
        (["data.cache_dir=/dev/null"], "data.cache_dir=/dev/null: cannot be used: File exists"),
        (["data.cache_dir=/proc"], "data.cache_dir=/proc: cannot be used: /proc/"),
        ([], "home=/proc/mlruns: cannot be used: No such file or directory"),
        (["-m", "seed=1,2"], "home=/proc/mlruns: cannot be used: No such file or directory"),
    ],
)
def test_a_folder_that_cannot_be_made_is_wrong_input(xray, tiny, home, monkeypatch, given, named):
    generated = "data=synthetic" in given
    small = [one for one in tiny if not one.startswith(("home=", "data.root=") if generated else "home=")]
    monkeypatch.chdir("/proc")
    outcome = xray("train", *(one.replace("OURS", str(home)) for one in given), *small)
    assert outcome.code == 2, outcome.err
    assert outcome.err.splitlines()[-1].startswith(f"xray: {named}")
    assert outcome.err.endswith("; name another place\n")


def test_other_errors_below_a_folder_stay_errors(xray, monkeypatch, tmp_path):
    def fail(_):
        raise FileNotFoundError(2, "No such file or directory", f"{tmp_path}/lost")

    monkeypatch.setattr("xray_pneumonia.workflows.train.main", fail)
    assert xray("train", f"home={tmp_path}").code == 1


def test_other_errors_of_files_stay_errors(xray, monkeypatch):
    def fail(_):
        raise FileNotFoundError(2, "No such file or directory", "/elsewhere")

    monkeypatch.setattr("xray_pneumonia.workflows.train.main", fail)
    assert xray("train", "home=/proc/no").code == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "data=synthetic",
            "data=synthetic: `xray evaluate` chooses no data; it has data.root, data.broken, data.positive, "
            "data.negative, data.patient",
        ),
        ("loss=focal", "loss=focal: `xray evaluate` chooses no loss; leave it out"),
    ],
)
def test_a_group_of_another_verb_is_named(xray, argument, message):
    outcome = xray("evaluate", "run_id=x", argument)
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1] == f"xray: {message}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "films"), "films: cannot be read; say input=films"),
        (("evaluate", "ckpt_path=x"), "ckpt_path=x: unknown key; say run_id"),
        (("predict", "data_dir=x", "input=y"), "data_dir=x: unknown key; say input"),
        (("predict", "lr=1", "input=y"), "lr=1: unknown key; `xray train` takes it, as optimizer.lr"),
        (("train", "."), ".: cannot be read; say data.root=."),
    ],
)
def test_other_habits_are_named_with_their_cure(xray, arguments, message):
    outcome = xray(*arguments)
    assert (outcome.code, outcome.err.splitlines()[-1]) == (2, f"xray: {message}")


def test_what_suggestions_name_exists():
    from torchvision import models

    from xray_pneumonia.keys import Verb
    from xray_pneumonia.models.torchvision import UNFIT
    from xray_pneumonia.suggestions import BACKBONES, KEYS

    backbones = {name for name in models.list_models(module=models) if not name.startswith(UNFIT)}
    assert {"resnet34", *BACKBONES.values()} <= backbones & {*BACKBONES}
    train = Verb("train")
    known = {
        *train.keys,
        *train.groups,
        *Verb("train", ["model=cnn", "optimizer=sgd"]).keys,
        "-m sweep",
        "model.backbone",
    }
    assert {part.partition("=")[0] for cure in KEYS.values() for part in cure.split(" ") if "=" in part} <= known | {
        "sweep"
    }
    assert {cure for cure in KEYS.values() if "=" not in cure} <= known


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_become_exit_codes(xray, monkeypatch, number, code):
    from xray_pneumonia.workflows import download

    monkeypatch.setattr(download, "install", lambda *_: signal.raise_signal(number))
    assert xray("download").code == code
    raise_if_stopped()  # of this process nothing else was asked to stop


def test_the_script_is_the_command():
    script = Path(__file__).parents[1] / "scripts" / "train.py"
    assert len(script.read_text().splitlines()) <= 10
    ast.parse(script.read_text())
    done = subprocess.run([sys.executable, script, "model=cnnn"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean cnn?" in done.stderr


def test_a_python_that_hydra_cannot_run_on_is_named(xray, monkeypatch):
    monkeypatch.setattr("sys.version_info", (3, 14, 0))
    outcome = xray("train", "data=synthetic")
    assert outcome.code == 2
    assert "Python 3.14 is not supported yet; use 3.11, 3.12 or 3.13" in outcome.err
