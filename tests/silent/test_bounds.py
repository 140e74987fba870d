"""Numbers without an upper bound: processes, trials, folds (kind E)."""

import pytest

GRID = ["optimizer.lr=1e-3,1e-4"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["predict", "input=.", "workers=100000"], "workers=100000"),
        (["predict", "input=.", "limits.memory_mb=1000000000000000"], "limits.memory_mb=1000000000000000"),
        (["train", "trainer.threads=100000"], "trainer.threads=100000"),
        (["train", "data.num_workers=100000"], "data.num_workers=100000"),
        (["train", "trainer.devices=100000"], "trainer.devices=100000"),
        (["train", "data.folds=1000000", "data.fold=0"], "data.folds=1000000"),
        (["train", "-m", *GRID, "workers=-1"], "workers=-1"),
        (["train", "-m", *GRID, "workers=100000"], "workers=100000"),
        (["train", "-m", "optimizer.lr=interval(0,inf)"], "optimizer.lr"),
        (["train", "-m", "seed=range(0,1e12)"], "seed"),
        (["train", "-m", "data.fold=0,1"], "data.folds"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_number_beyond_what_there_is_is_refused(xray, tiny, arguments, named):
    outcome = xray(*arguments, *(tiny if arguments[0] == "train" else []))
    assert outcome.code == 2, outcome.err
    assert named in outcome.err


def test_a_grid_ends_with_its_points(xray, tiny):
    outcome = xray("train", "-m", *tiny, *GRID, "sweep.n_trials=1000000000", "trainer.max_epochs=1")
    assert outcome.code == 0, outcome.err
    assert " trials=2 " in outcome.out.splitlines()[-1]
