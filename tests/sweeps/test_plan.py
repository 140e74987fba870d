"""Plans: what a command means as a sweep, its name and its budget."""

import pytest
from hydra import compose, initialize_config_module
from omegaconf import open_dict

from xray_pneumonia.errors import InputError
from xray_pneumonia.sweeps.plan import BUDGET, read_plan


def read(*arguments, choice="default"):
    fixed = [a for a in arguments if a.startswith("sweep")]
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        cfg = compose("train", fixed)
    with open_dict(cfg):
        return read_plan(cfg, arguments, choice=choice)


def test_a_grid_is_all_its_points():
    plan = read("model=cnn,resnet", "optimizer.lr=1e-4,3e-4,1e-3", "tracking.run_name=x")
    assert (plan.kind, plan.n_trials, len(plan.points)) == ("grid", 6, 6)
    assert plan.carried == ("tracking.run_name=x",)
    assert plan.objectives == {"val/auroc": "max"}


def test_an_interval_makes_a_search():
    plan = read("optimizer.lr=interval(1e-4,1e-2)")
    assert (plan.kind, plan.n_trials) == ("tpe", BUDGET)


def test_the_name_says_what_is_asked_and_nothing_else():
    one = read("model=cnn,resnet", "trainer.max_epochs=2")
    assert one.name == read("model=cnn,resnet", "trainer.max_epochs=2", "workers=2").name
    assert one.name != read("model=cnn,resnet", "trainer.max_epochs=3").name
    assert one.name.startswith("grid-")


@pytest.mark.parametrize("name", ["notebook_grid", "architecture", "augmentation", "optimizer"])
def test_the_configs_that_come_along_are_plans(name):
    plan = read(f"sweep={name}", choice=name)
    assert plan.space.parameters
    assert plan.name.startswith(f"{name}-")


def test_seed_grid_is_the_notebooks():
    plan = read("sweep=notebook_grid", choice="notebook_grid")
    assert len(plan.points) == 12
    assert plan.settings.folds == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.lr=1e-3"], "nothing to sweep over"),
        (["optimizer.lr=interval(1,2)", "sweep.sampler=grid"], "finitely many"),
        (["model=cnn,mlp", "sweep.nmae=x"], "nmae"),
        (["seed=1,2", "sweep.seeds=[1,2]"], "replicated"),
        (["model=cnn,mlp", "sweep.seeds=[1,1]"], "same seed twice"),
        (["model=cnn,mlp", "sweep.objectives={val/auroc:max,val/loss:min}", "sweep.pruner=median"], "no order"),
        (["model=cnn,mlp", "sweep.objectives={val/auroch:max}"], "val/auroch"),
        (["model=cnn,mlp", "sweep.n_trials=0"], "sweep.n_trials=0"),
        (["model=cnn,mlp", "tracking.experiment_name=a,b"], "cannot be swept"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        cfg = compose("train", [a for a in arguments if a.startswith("sweep") and "nmae" not in a])
    with open_dict(cfg.sweep):
        cfg.sweep.update({"nmae": "x"} if "sweep.nmae=x" in arguments else {})
    with pytest.raises(InputError, match=message):
        read_plan(cfg, arguments, choice="default")


def test_first_points_come_first():
    plan = read("sweep=optimizer", choice="optimizer")
    assert plan.points[0]["optimizer"] == "adamw"
    assert plan.n_trials == 30
