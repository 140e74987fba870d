"""Numbers without an upper bound: processes, trials, folds (kind E)."""

import pytest


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "input=.", "workers=100000"],
        ["train", "trainer.threads=100000"],
        ["train", "-m", "workers=-1"],
        ["train", "-m", "workers=100000", "optimizer.lr=1e-3,1e-4"],
        ["train", "data.workers=100000"],
        ["train", "trainer.devices=100000"],
        ["train", "-m", "optimizer.lr=interval(0,inf)"],
        ["train", "-m", "seed=range(0,1e12)"],
        ["train", "data.folds=1000000", "data.fold=0"],
    ],
    ids=" ".join,
)
def test_a_number_beyond_what_there_is_is_refused(xray, tiny, arguments):
    verb, *rest = arguments
    outcome = xray(verb, *rest, *(tiny if verb == "train" else []))
    assert outcome.code == 2, outcome.err
    key = rest[-1].partition("=")[0] if "folds" not in rest[0] else "data.folds"
    assert key in outcome.err or rest[0].partition("=")[0] in outcome.err


def test_a_grid_ends_with_its_points(xray, tiny):
    outcome = xray("train", "-m", *tiny, "optimizer.lr=1e-3,1e-4", "sweep.n_trials=1000000000", "trainer.max_epochs=1")
    assert outcome.code == 0, outcome.err
    assert " trials=2 " in outcome.out.splitlines()[-1]
