"""Help and completion of verbs: comments of the YAML files, what a shell offers, nothing heavy imported."""

import shutil
import subprocess
import sys

import pytest

from xray_pneumonia import cli
from xray_pneumonia.command_help import SCRIPTS, complete, describe


def test_the_help_of_a_verb_shows_comments_and_its_own_groups_alone(xray, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # lines are wrapped to the terminal's width
    outcome = xray("train", "--help", "model=cnn")
    assert outcome.code == 0
    assert "seed=0" in outcome.out
    assert "of the weights, the order of the images and their augmentation" in outcome.out
    assert "model.pool=max                    or average" in outcome.out
    assert "class weights: bce, focal" in outcome.out
    assert "augmentation.rotate=7             degrees to either side" in outcome.out  # the comment of none.yaml
    assert not {"mode=null", "sweep.trial=null", "seed_final"} & {*outcome.out.replace(",", " ").split()}
    of_predict = describe("predict", [])
    assert "a PNG, JPEG or DICOM file" in of_predict
    assert not {"Groups", "model=cnn", "bce"} & {*of_predict.split()}


@pytest.mark.parametrize("verb", [verb for verb in cli.VERBS if verb != "completion"])
def test_help_lists_every_key_that_hydra_composes(verb):
    """Reading text instead of composing must not lose a key."""
    from hydra import compose, initialize_config_module

    from xray_pneumonia.config import PACKAGE, leaves, plain
    from xray_pneumonia.keys import Verb

    with initialize_config_module(PACKAGE, version_base="1.3"):
        values = dict(leaves(plain(compose(verb), resolve=False)))
    hidden = {"mode", "sweep.trial", "data.resident", "trainer.checkpoint_minutes", "trainer.checkpoint_steps"}
    assert {*Verb(verb).keys} == {key for key in values if not key.endswith("_target_")} - hidden | (
        {"sweep.space", "sweep.scales"} & {*Verb(verb).keys}
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("xray tr", ["train"]),
        ("xray predict in", ["input="]),
        ("xray train mod", ["model.", "model="]),
        ("xray train -m model=cnn,res", ["model=cnn,resnet"]),
        ("xray train model=cnn model.po", ["model.pool="]),
        ("xray train optimizer.l", ["optimizer.lr="]),
        ("xray predict explain=", ["explain=true", "explain=false"]),
        ("xray predict model=final_seed5", ["model=final_seed5"]),
        ("xray completion b", ["bash"]),
        ("xray nothing x", []),
    ],
)
def test_what_completes_a_line(line, words):
    assert complete(line, cli.VERBS) == words


def test_own_groups_are_completed(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: mine.Net\nwidth: 3  # of it\n")
    line = f"xray train --config-dir {tmp_path} model=mine model."
    assert "model.width=" in complete(line, cli.VERBS)


def test_bash_completes(tmp_path):
    """Run the function that bash calls, as bash calls it."""
    (tmp_path / "xray").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m xray_pneumonia.cli "$@"\n')
    (tmp_path / "xray").chmod(0o755)
    script = f"""{SCRIPTS["bash"]}
    PATH={tmp_path}:$PATH COMP_LINE='xray train model=cn' COMP_POINT=19
    _xray xray; printf '[%s]' "${{COMPREPLY[@]}}"
    COMP_LINE='xray predict in' COMP_POINT=15
    _xray xray; printf '[%s]' "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[cnn ][input=]", done.stderr


@pytest.mark.parametrize("shell", SCRIPTS)
def test_scripts_are_of_their_shell(xray, shell):
    outcome = xray("completion", shell)
    assert outcome.code == 0
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=outcome.out, text=True, check=True)


def test_completion_imports_nothing_heavy_and_names_its_shells(xray):
    code = "import sys; from xray_pneumonia.cli import main; main(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "completion", "words", "xray train mod"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"torch", "hydra", "omegaconf", "mlflow", "numpy", "yaml"} & set(done.stdout.split())
    outcome = xray("completion", "tcsh")
    assert outcome.code == 2
    assert "xray completion zsh >> ~/.zshrc" in outcome.err


@pytest.mark.parametrize(
    "old",
    ["experiment=seed_final", "experiment=seed_cnn", "experiment=seed_mlp", "augmentation=seed", "sweep=seed_grid"],
)
def test_the_notebooks_old_names_compose_the_same(old):
    from hydra import compose, initialize_config_module

    from xray_pneumonia.config import PACKAGE

    with initialize_config_module(PACKAGE, version_base="1.3"):
        assert compose("train", [old]) == compose("train", [old.replace("=seed", "=notebook")])
