"""Two doors, one guarded: experiment files from outside the package are input (kind B)."""

import pytest

SMALL = ["data=synthetic", "data.synthetic_patients=20", "data.image_size=32", "trainer=smoke", "evaluation=quick"]
HEAD = "# @package _global_\n"


@pytest.fixture
def canary(tmp_path):
    """A pickle that leaves a file behind when it is loaded."""
    import pickle

    left = tmp_path / "code_was_run"

    class Evil:
        def __reduce__(self):
            return (open, (str(left), "w"))

    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    return left


@pytest.mark.parametrize(
    "text",
    [
        "hydra:\n  callbacks:\n    x: {_target_: joblib.load, filename: evil.pkl}\n",
        "hydra:\n  job_logging:\n    handlers: {x: {(): joblib.load, filename: evil.pkl}}\n",
        "hydra: {searchpath: [file:.]}\n",
        "defaults:\n  - override /hydra/launcher: joblib\n",
        "defaults:\n  - /hydra/launcher: joblib\n",
        "data: {_target_: joblib.load, filename: evil.pkl}\n",
        "model: {_target_: xray_pneumonia.models.resnet.ResNet, x: [{_target_: joblib.load, filename: evil.pkl}]}\n",
        "home: ${oc.env:HOME}\n",
        "home: ${oc.decode:x}\n",
        "seed: !!python/object/apply:os.system [touch code_was_run]\n",
        "a: &a [1]\nb: *a\n",
        "defaults: [experiment: mine]\n",
        "defaults:\n  - mine\n",
        "defaults: 5\n",
        "defaults:\n",
        'home: "a\\0b"\n',
        "seed: 1\n" + "# " + "x" * 2**21 + "\n",
        "x: " + "[" * 60 + "]" * 60 + "\n",
    ],
)
def test_an_experiment_file_names_nothing_that_runs_code(xray, tmp_path, canary, text):
    (tmp_path / "mine.yaml").write_text(HEAD + text)
    outcome = xray("train", *SMALL, "experiment=mine.yaml")
    assert not canary.exists()
    assert outcome.code == 2, outcome.err
    assert "mine.yaml" in outcome.err


@pytest.mark.parametrize("named", ["--config-dir={}", "hydra.searchpath=['file://{}']"])
def test_a_folder_that_the_command_names_is_trusted_but_builds_nothing_off_the_list(xray, tmp_path, canary, named):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "evil.yaml").write_text(f"{HEAD}model: {{_target_: joblib.load, filename: evil.pkl}}\n")
    (folder / "loud.yaml").write_text(f"{HEAD}hydra: {{verbose: true}}\n")
    options = [named.format(folder.parent), *SMALL]
    outcome = xray("train", *options, "experiment=evil")
    assert (outcome.code, canary.exists()) == (2, False), outcome.err
    assert "joblib.load" in outcome.err
    assert xray("train", *options, "experiment=loud", "--cfg", "job").code == 0
    outcome = xray("train", *SMALL, f"experiment={folder}/loud.yaml")  # the same as a file is input
    assert outcome.code == 2
    assert "hydra" in outcome.err


def test_an_experiment_file_without_its_first_line_is_told_to_have_it(xray, tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 3\n")
    outcome = xray("train", *SMALL, "experiment=mine.yaml")
    assert (outcome.code, "lacks the line `# @package _global_`" in outcome.err) == (2, True), outcome.err


def test_an_honest_experiment_file_composes(xray, tmp_path):
    defaults = "defaults:\n  - override /model: cnn\n  - override /loss: bce\n  - _self_\n\n"
    (tmp_path / "mine.yaml").write_text(f"{HEAD}{defaults}seed: 3\noptimizer: {{lr: 0.01}}\n")
    outcome = xray("train", *SMALL, "experiment=mine.yaml", "--cfg", "job")
    assert outcome.code == 0, outcome.err
    assert "seed: 3" in outcome.out
    assert "models.cnn.CNN" in outcome.out
