"""Sending twice changes nothing, also where the store itself would take everything twice."""

from types import SimpleNamespace

import pytest

from xray_pneumonia.tracking.journal import Journal
from xray_pneumonia.tracking.spool import Delivery


class Gullible:
    """A store that keeps whatever it is given, as often as it is given."""

    def __init__(self):
        self.metrics = []

    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        self.metrics += metrics

    def get_metric_history(self, run_id, name):
        return [metric for metric in self.metrics if metric.key == name]


@pytest.fixture
def delivery(tmp_path):
    journal = Journal(tmp_path / "journal" / ("a" * 32))
    journal.append("run", {"name": "n", "start": 0, "tags": {}, "experiment": "x", "folder": "", "staged": False})
    journal.identify("b" * 32)
    store = SimpleNamespace(client=Gullible(), experiment_id="1", home=tmp_path, uri="")
    made = Delivery(store, journal, staged=tmp_path, send_model=lambda *_: None, moved=lambda: None)
    return made, journal, store.client


@pytest.mark.parametrize(("unsure", "copies"), [(True, 1), (False, 2)])
def test_what_may_have_arrived_is_asked_for_before_it_is_sent_again(delivery, unsure, copies):
    made, journal, client = delivery
    for step in range(1, 40):
        journal.append("metrics", [["val/loss", float("nan"), 10 * step, step], ["val/auroc", 0.5, 10 * step, step]])
    entries = list(journal.entries())
    half = list(made.send(entries[:20], unsure=False))
    assert half[-1] == entries[19].end
    list(made.send(entries, unsure=unsure))
    steps = [metric.step for metric in client.metrics if metric.key == "val/auroc"]
    assert sorted(steps) == sorted([*range(1, 40), *(list(range(1, 20)) if copies == 2 else [])])
