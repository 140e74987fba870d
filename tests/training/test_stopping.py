"""Signals wait for a safe moment, and not for ever."""

import signal
import time

import pytest
from xray_pneumonia.training.stopping import Stopping

from xray_pneumonia.training import stopping


class Caught(BaseException):
    pass


@pytest.fixture
def handled():
    def stop(number, _):
        raise Caught(number)

    before = {number: signal.signal(number, stop) for number in stopping.NUMBERS}
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", stopping.NUMBERS)
def test_a_signal_waits_until_it_is_obeyed_and_then_does_what_it_did_before(handled, number):
    waiting = Stopping()
    waiting.arm()
    signal.raise_signal(number)
    signal.raise_signal(number)
    assert waiting.requested
    with pytest.raises(Caught, match=str(int(number))):
        waiting.obey()
    assert signal.getsignal(number) is handled
    with pytest.raises(Caught):
        signal.raise_signal(number)


def test_it_does_not_wait_for_ever(handled, monkeypatch):
    monkeypatch.setattr(stopping, "PATIENCE", 0.1)
    waiting = Stopping()
    waiting.arm()
    with pytest.raises(Caught):  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is handled


def test_nothing_is_obeyed_where_nothing_came(handled):
    waiting = Stopping()
    waiting.arm()
    waiting.obey()
    assert signal.getsignal(signal.SIGINT) is handled
