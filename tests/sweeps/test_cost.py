"""What a trial costs beyond its training, and that the cost does not grow with the number of trials."""

import statistics
import sys
import time
from itertools import pairwise

import pytest

from xray_pneumonia import cli
from xray_pneumonia.workflows import training as workflow

TRIALS = 500


@pytest.mark.long
def test_a_trial_costs_little_and_the_last_no_more_than_the_first(tmp_path, monkeypatch, capfd):
    """Run real trials whose training takes no time: what is left is the sweeper, Hydra and the two databases."""
    ended = []

    def train(cfg, *, watch):
        watch.values = [len(ended) % 7 / 10 + cfg.optimizer.lr]
        ended.append((time.perf_counter(), time.process_time()))

    monkeypatch.setattr(workflow, "train", train)
    monkeypatch.chdir(tmp_path)
    space = ["optimizer.lr=tag(log,interval(1e-5,1e-1))", "optimizer=adamw,sgd"]
    monkeypatch.setattr(
        sys, "argv", ["xray", "train", "-m", "data=synthetic", "trainer=cpu", *space, f"sweep.n_trials={TRIALS}"]
    )
    assert cli.main() == 0
    wall, cpu = ([late[kind] - early[kind] for early, late in pairwise(ended)] for kind in (0, 1))
    windows = {"first": slice(0, 25), "100th": slice(87, 112), "last": slice(-25, None)}
    waited, computed = ({at: statistics.median(each[part]) for at, part in windows.items()} for each in (wall, cpu))
    with capfd.disabled():
        for at in windows:
            print(f"\n{at} trial: {1e3 * waited[at]:.0f} ms, {1e3 * computed[at]:.0f} ms of them computing", end="")
    assert len(ended) == TRIALS
    assert computed["first"] < 0.5  # 5 % of a trial of ten seconds; what it waits depends on what else runs
    assert computed["last"] < 1.5 * computed["first"]
