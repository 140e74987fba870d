"""F1, F7, F8, F31: what happens to a training whose process is killed or told to stop."""

import signal

import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("word", "count", "steps", "line"),
    [
        ("PREPARED", 1, None, ""),
        ("STEP", 5, 0, "the epoch under way is lost; no epoch was completed"),
        ("STEP", 13, 9, "the epoch under way is lost; `xray train resume={}` resumes after epoch 1"),
        ("CHECK", 3, 9, "the epoch under way is lost; `xray train resume={}` resumes after epoch 1"),
        ("EVALUATE", 1, 27, "`xray train resume={}` resumes after its last epoch, 3"),
    ],
    ids=["before the first step", "first epoch", "training", "validation", "evaluation"],
)
def test_sigterm_closes_the_run_says_what_is_lost_and_leaves_143(place, word, count, steps, line):
    training = place.train().until(word, count)
    assert training.signal(signal.SIGTERM).end() == 143, training.err
    assert "Traceback" not in training.err
    if steps is None:  # nothing was done, so there is no run
        assert place.client.get_experiment_by_name(place.name) is None or not place.runs
        return
    assert f"xray: {line.format(place.run.info.run_id)}\n" in training.err
    assert place.run.info.status == "KILLED"
    assert "terminated" in place.run.data.tags["reason"]
    resumed = place.resume()
    if not steps:
        assert resumed.end() == 2
        assert "stopped before the end of its first epoch" in resumed.err
        return
    assert torch.load(place.checkpoints / "last.ckpt", weights_only=True)["global_step"] == steps
    assert resumed.end() == 0
    assert place.run.info.status == "FINISHED"
    assert place.steps() == [1, 2, 3]


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_once_or_twice_closes_the_run_and_leaves_130(place, times):
    training = place.train().until("STEP", 13)
    for _ in range(times):
        training.signal(signal.SIGINT)
    assert training.end() == 130, training.err
    assert f"the epoch under way is lost; `xray train resume={place.run.info.run_id}`" in training.err
    assert "Traceback" not in training.err
    assert place.run.info.status == "KILLED"
    assert not [path for path in place.checkpoints.iterdir() if path.suffix == ".tmp"]
    assert place.resume().end() == 0


def test_after_sigkill_the_same_command_mentions_the_run_and_resume_ends_it(place):
    training = place.train().until("STEP", 14)
    training.signal(signal.SIGKILL)
    assert training.end() == -9
    assert place.run.info.status == "RUNNING"  # nothing could change it
    again = place.train().until("PREPARED").signal(signal.SIGTERM)
    assert again.end() == 143
    assert f"`xray train resume={place.run.info.run_id}` resumes it" in again.err
    resumed = place.resume()
    assert resumed.end() == 0, resumed.err
    assert resumed.words.count("STEP") == 27 - 9
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
