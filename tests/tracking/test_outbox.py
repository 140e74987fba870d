"""The outbox: one sender at a time, even when the one before it was left in the middle of an attempt."""

import threading
import time

import pytest

from xray_pneumonia.tracking import outbox
from xray_pneumonia.tracking.journal import Journal


class Stuck:
    """A store that answers when it is told to."""

    def __init__(self):
        self.asked, self.answers = threading.Event(), threading.Event()

    def send(self, entries, *, unsure):
        self.asked.set()
        assert self.answers.wait(30)
        yield entries[-1].end


@pytest.fixture
def left(tmp_path, monkeypatch):
    """An outbox that gave up while the store was thinking, with its store."""
    monkeypatch.setattr(outbox, "STUCK", 0.2)
    monkeypatch.setattr(outbox, "LEAVING", 0.1)
    journal, store = Journal(tmp_path), Stuck()
    assert journal.acquire()
    journal.append("tags", {"a": "1"})
    box = outbox.Outbox(journal, store, beat=lambda _: None, unsure=False)
    assert store.asked.wait(30)
    assert not box.finish()
    box.leave()
    yield store
    store.answers.set()


def test_an_attempt_under_way_is_awaited_before_another_process_sends(left, tmp_path):
    assert not Journal(tmp_path).acquire()  # two senders would make two runs of one
    left.answers.set()
    other = Journal(tmp_path)
    for _ in range(300):
        if other.acquire():
            break
        time.sleep(0.1)
    else:
        raise AssertionError("nobody lets go")
    assert other.unsent() == 0
    other.release()
