"""Spaces: what is read, what is refused, and what a trial is given."""

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from xray_pneumonia.errors import InputError
from xray_pneumonia.sweeps.space import overrides, read_space


def only(argument):
    [parameter] = read_space([argument], {}).parameters
    return parameter.distribution


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("a=1,2", CategoricalDistribution(["1", "2"])),
        ("a=choice([8,16],[4])", CategoricalDistribution(["[8,16]", "[4]"])),
        ("a=range(1,4)", IntDistribution(1, 3)),  # the end is left out, as in Hydra
        ("a=range(0,1,0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("a=interval(0,1)", FloatDistribution(0, 1)),
        ("a=int(interval(4,32))", IntDistribution(4, 32)),
        ("a=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("a=tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
    ],
)
def test_hydras_ranges_become_distributions(argument, expected):
    assert only(argument) == expected


@pytest.mark.parametrize(
    ("arguments", "configured", "message"),
    [
        (["a=interval(2,1)"], {}, "lower end below"),
        (["a=tag(log,interval(0,1))"], {}, "a=tag"),
        (["a=range(1,1)"], {}, "empty"),
        (["a=1,1"], {}, "twice"),
        (["a=1,2", "a=3,4"], {}, "set twice"),
        (["a=1", "a=3,4"], {}, "set twice"),
        ([], {"a": 3}, "nothing to search"),
        ([], {"a": {"space": "choice(1,2)"}}, "`space` and `when`"),
        ([], {"a": {"space": "choice(1,2)", "when": {"b": 1}}}, "neither searched nor set"),
        (["b=1,2"], {"a": {"space": "choice(1,2)", "when": {"b": 3}}}, "never happens"),
        (
            [],
            {
                "a": {"space": "choice(1,2)", "when": {"b": 1}},
                "b": {"space": "choice(1,2)", "when": {"a": 1}},
            },
            "wait for each other",
        ),
        (["a=tag(ln,interval(1,2))"], {}, "means nothing"),
    ],
)
def test_contradictions_are_refused(arguments, configured, message):
    with pytest.raises(InputError, match=message):
        read_space(arguments, configured)


def test_the_command_line_overrides_the_configured_space():
    space = read_space(["lr=0.1", "width=1,2"], {"lr": "interval(0,1)", "width": "choice(3,4)", "depth": [5, 6]})
    assert {p.key: p.text for p in space.parameters} == {"width": "1,2", "depth": "choice(5,6)"}
    assert space.fixed == {"lr": "0.1"}


def test_conditions_shape_the_grid():
    space = read_space(
        [], {"momentum": {"space": "choice(0.8,0.9)", "when": {"optimizer": "sgd"}}, "optimizer": "choice(sgd,adamw)"}
    )
    assert space.grid() == [
        {"optimizer": "sgd", "momentum": "0.8"},
        {"optimizer": "sgd", "momentum": "0.9"},
        {"optimizer": "adamw"},
    ]


def test_a_trial_is_given_what_applies():
    space = read_space(
        ["lr=tag(log,interval(1e-4,1e-2))"],
        {"momentum": {"space": "interval(0.8,0.9)", "when": {"optimizer": "sgd"}}, "optimizer": "choice(sgd,adamw)"},
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(20):
        point = space.suggest(study.ask())
        assert 1e-4 <= point["lr"] <= 1e-2
        assert ("momentum" in point) == (point["optimizer"] == "sgd")
        seen.add(point["optimizer"])
        assert f"optimizer={point['optimizer']}" in overrides(point)
    assert seen == {"sgd", "adamw"}


def test_hand_written_points_are_checked():
    space = read_space(["lr=interval(0,1)", "n=1,2", "on=true,false"], {})
    assert space.require({"lr": 0.5, "n": 2, "on": True}, origin="first") == {"lr": 0.5, "n": "2", "on": "True"}
    for point, message in (({"lr": 2}, "outside"), ({"lrr": 0.5}, "did you mean lr"), ({"n": 3}, "outside")):
        with pytest.raises(InputError, match=message):
            space.require(point, origin="first")
