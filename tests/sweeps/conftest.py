"""What the sweeps share: overrides that make a trial take a second, and the command that sweeps over them."""

import sys

import pytest


@pytest.fixture
def small():
    """Overrides of a trial that takes a second."""
    return [
        *("model=resnet", "model.width=4", "model.stages=2", "model.depth=1"),
        *("data=synthetic", "data.synthetic_patients=80", "data.image_size=32"),
        *("trainer.max_epochs=1", "trainer.threads=1", "tracking.system_metrics=false"),
    ]


@pytest.fixture
def command(small):
    """The sweep as a process of its own; to be completed."""
    return [sys.executable, "-m", "xray_pneumonia.cli", "train", "-m", *small]
