"""What a trial costs beyond its training, and that the cost does not grow with the number of trials."""

import statistics
import time
import uuid

import pytest
from hydra import compose, initialize_config_module

from xray_pneumonia.sweeps import plan as plans
from xray_pneumonia.sweeps.storage import open_storage
from xray_pneumonia.sweeps.study import SweepStudy


@pytest.mark.slow
def test_asking_and_telling_stay_cheap(tmp_path):
    arguments = ["optimizer.lr=tag(log,interval(1e-5,1e-1))", "optimizer=adamw,sgd", "sweep.n_trials=500"]
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        cfg = compose("train", ["sweep.n_trials=500"])
    plan = plans.read(cfg, arguments, choice="default")
    storage = open_storage(f"sqlite:///{tmp_path}/sweeps.db")
    study = SweepStudy(plan, storage, session=uuid.uuid4().hex, inquest=lambda trial: None)
    seconds = []
    for number in range(500):
        start = time.process_time()
        [claim] = study.claim(1)
        study.study.tell(claim.number, number % 7 / 10 + 0.1 * claim.point["optimizer.lr"])
        seconds.append(time.process_time() - start)
    early, late = statistics.median(seconds[20:70]), statistics.median(seconds[-50:])
    print(f"processor time of a trial: {1e3 * early:.1f} ms early, {1e3 * late:.1f} ms late")
    assert late < 0.1
