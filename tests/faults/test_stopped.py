"""F1, F7, F8, F31: what happens to a training whose process is killed or told to stop."""

import signal

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def stop(place):
    def at(word, count, number):
        training = place.train().until(word, count)
        return training, training.signal(number).end()

    return at


@pytest.mark.parametrize(
    ("word", "count", "kept"),
    [("PREPARED", 1, None), ("STEP", 13, 13), ("CHECK", 1, 9), ("JUDGE", 1, 27)],
    ids=["before the first step", "training", "validation", "judging"],
)
def test_sigterm_writes_a_checkpoint_closes_the_run_and_leaves_143(stop, place, word, count, kept):
    training, code = stop(word, count, signal.SIGTERM)
    assert code == 143, training.err
    assert "Traceback" not in training.err
    if kept is None:  # nothing was done, so nothing is kept: not even a run
        assert place.client.get_experiment_by_name(place.name) is None or not place.runs
        return
    import torch

    assert place.run.info.status == "KILLED"
    assert "terminated" in place.run.data.tags["reason"]
    assert torch.load(place.checkpoints / "last.ckpt", weights_only=True)["global_step"] == kept
    assert place.resume().end() == 0
    assert place.run.info.status == "FINISHED"
    assert place.steps() == [1, 2, 3]


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_once_or_twice_closes_the_run_and_leaves_130(place, times):
    training = place.train().until("STEP", 5)
    for _ in range(times):
        training.signal(signal.SIGINT)
    assert training.end() == 130, training.err
    assert "Traceback" not in training.err
    assert place.run.info.status == "KILLED"
    assert not [path for path in place.checkpoints.iterdir() if path.suffix == ".tmp"]
    assert place.resume().end() == 0


def test_sigkill_in_an_epoch_then_the_same_command_offers_and_resume_ends_it(place):
    training = place.train().until("STEP", 14)
    training.signal(signal.SIGKILL)
    assert training.end() == -9
    assert place.run.info.status == "RUNNING"  # nobody could say otherwise
    again = place.train()
    assert again.end() == 2
    assert f"xray train resume={place.run.info.run_id}" in again.err
    resumed = place.resume()
    assert resumed.end() == 0, resumed.err
    assert 27 - 14 <= resumed.words.count("STEP") <= 27 - 12  # from a checkpoint at most two steps before the kill
    assert place.steps() == place.steps("train/loss") == [1, 2, 3]


def test_a_running_run_is_not_taken_over(place):
    training = place.train().until("STEP", 3).signal(signal.SIGSTOP)  # else it is finished before it is asked for
    other = place.resume()
    assert other.end() == 2
    assert "still running" in other.err
    training.signal(signal.SIGCONT)
    assert training.signal(signal.SIGTERM).end() == 143


def test_two_runs_of_one_name_in_the_same_second_share_nothing(place):
    asked = ("tracking.run_name=twins", "trainer.max_epochs=1", "resume=new")
    one, two = place.train(*asked), place.train(*asked)
    assert (one.end(), two.end()) == (0, 0), one.err
    first, second = place.runs
    assert first.info.run_id != second.info.run_id
    assert first.info.artifact_uri != second.info.artifact_uri
