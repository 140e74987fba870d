"""What the runs of a trial tell after its process was killed."""

from types import SimpleNamespace

import pytest
from optuna.trial import TrialState

from xray_pneumonia.sweeps.pruning_callback import result_tags
from xray_pneumonia.sweeps.trial_runs import recover_result
from xray_pneumonia.tracking import run as runs
from xray_pneumonia.tracking import stored_runs
from xray_pneumonia.tracking.store import TrackingSettings, open_store

TAGS = {"sweep.name": "lr", "sweep.trial": "3", "sweep.trial_id": "5"}


@pytest.mark.parametrize(
    ("ended", "recovered"), [(True, (TrialState.COMPLETE, [0.9])), (False, None)], ids=["trained", "stopped"]
)
def test_a_process_killed_before_the_end_of_its_run_was_sent(tmp_path, ended, recovered):
    """The run says FINISHED once it is sent, so the trial has to count; queued again, it would be there twice."""
    settings = TrackingSettings(uri=None, experiment_name="x", run_name=None, system_metrics=False, required=False)
    store = open_store(settings, home=tmp_path)
    run = runs._create(store, "lr 3", TAGS)  # without a thread that sends
    if ended:
        run.set_tags(result_tags([0.9], pruned=False))
        run.close("FINISHED", "")
    run.spool.release()
    assert recover_result(store, SimpleNamespace(_trial_id=5, number=3)) == recovered
    [found] = stored_runs.find(store, TAGS)
    assert found.status == ("FINISHED" if ended else "KILLED")
