"""Whether a process is alive is never read off a name or a clock that two machines may share or set."""

import os

import pytest

from xray_pneumonia.tracking import process
from xray_pneumonia.tracking.process import alive, identity, is_own

OLD = {key: value for key, value in identity().items() if key not in {"machine", "since_boot"}}  # as 0.1.0 wrote it


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize(
    "changed",
    [
        {"host": "elsewhere"},
        {"boot": "another", "machine": "another"},  # another machine of this name
        {"boot": "another", "machine": ""},  # in a container, which has no id: perhaps another machine
        {"space": "pid:[1]"},  # another container of this machine
    ],
)
def test_the_sign_of_life_decides_on_what_cannot_be_seen_from_here(changed, seen):
    assert alive({**identity(), **changed}, silent=lambda: 10.0, stale_after=20.0 if seen else 5.0) == seen


@pytest.mark.parametrize(
    ("known", "living"),
    [
        (identity(), True),
        ({key: str(value) for key, value in identity().items()}, True),
        (OLD, True),
        ({**identity(), "born": identity()["born"] + 300}, True),  # the clock was set since
        ({**identity(), "born": 1.0, "since_boot": 1.0}, False),  # its number was given to this process
        ({**OLD, "born": 1.0}, False),
        ({**identity(), "pid": 2**22 - 1}, False),
        ({**identity(), "boot": "another"}, False),  # this machine was restarted
        ({**OLD, "boot": "another"}, False),
    ],
)
def test_a_process_of_this_machine_is_looked_at(known, living, monkeypatch):
    monkeypatch.setattr(process, "_machine", lambda: "this")
    if "machine" in known:
        known = {**known, "machine": "this"}
    assert alive(known, silent=lambda: 0.0, stale_after=1.0) == living


def test_a_process_knows_itself_and_no_other():
    assert is_own({key: str(value) for key, value in identity().items()})
    assert not is_own(identity(os.getppid()))
    assert not is_own({})
