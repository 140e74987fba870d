"""`scripts/freeze.py`: how an ensemble is judged stands in the configs of its members, and nowhere else."""

import runpy
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from xray_pneumonia.errors import InputError
from xray_pneumonia.stored_config import stored_text
from xray_pneumonia.tracking.store import Store
from xray_pneumonia.tracking.stored_runs import StoredRun

judged = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "freeze.py"))["judged"]


def member(seed, *overrides):
    """A run as the store gives it back; no file or database stands behind it."""
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        config = stored_text(compose("train", [f"seed={seed}", *overrides]))
    return StoredRun(Store("", "0", "xray", Path()), f"{seed:032x}", "final", "FINISHED", 0, config, {})


def test_an_ensemble_is_judged_as_its_members_were():
    asked = ["evaluation.operating_point=sensitivity:0.9", "evaluation.calibration=none"]
    settings = judged([member(seed, *asked, "evaluation.max_error=0.1") for seed in (1, 2)])
    assert (settings.operating_point, settings.calibration, settings.max_error) == (
        "sensitivity:0.9",
        "none",
        0.1,
    )


def test_the_final_models_are_judged_as_their_experiment_says():
    settings = judged([member(seed, "experiment=final") for seed in (1, 2)])
    assert (settings.operating_point, settings.calibration) == ("middle", "platt")


def test_members_that_were_judged_in_different_ways_are_refused():
    with pytest.raises(InputError, match=f"{2:032x}: evaluation.calibration=none, platt in the first; train"):
        judged([member(1), member(2, "evaluation.calibration=none")])
    judged([member(1, "evaluation=training"), member(2, "evaluation=quick")])  # pictures choose nothing
