"""The write-ahead log: what was logged is on the disk, whatever happens to its writer."""

import multiprocessing
import os
import pickle
from pathlib import Path

import pytest

from xray_pneumonia.tracking.spool import Entry, Spool, spools, store_uri


def logged(spool, start=0):
    return [(entry.what, entry.value) for entry in spool.entries(start)]


def test_entries_are_read_back_in_order_and_in_parts(tmp_path):
    spool = Spool(tmp_path / "journal" / "a")
    for number in range(3):
        spool.append(("metrics", [["val/loss", float("nan") if number == 1 else number, 0, number]]))
    first = next(spool.entries())
    spool.mark_sent(first.end)
    assert len(logged(spool)) == 3
    assert [value[0][3] for _, value in logged(spool, spool.sent)] == [1, 2]
    assert spool.has_unsent()
    assert [one.run_id for one in spools(tmp_path)] == ["a"]


def test_an_entry_cut_off_by_a_dead_writer_costs_no_other(tmp_path):
    spool = Spool(tmp_path)
    spool.append(("tags", {"a": "1"}))
    with (tmp_path / "entries.jsonl").open("ab") as file:
        file.write(b'{"what": "tags", "va')
    assert logged(Spool(tmp_path)) == [("tags", {"a": "1"})]
    Spool(tmp_path).append(("tags", {"b": "2"}))
    assert logged(Spool(tmp_path)) == [("tags", {"a": "1"}), ("tags", {"b": "2"})]


def test_a_full_disk_loses_nothing_that_is_logged_before_there_is_room_again(tmp_path, monkeypatch):
    spool = Spool(tmp_path)
    spool.append(("tags", {"a": "1"}))
    written = []

    def half(descriptor, data):
        if written:
            raise OSError(28, "No space left on device")
        written.append(1)
        return write(descriptor, data[:5])

    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space"):
            spool.append(("tags", {"b": "2"}))
    assert logged(spool) == [("tags", {"a": "1"})]
    spool.append(("tags", {"c": "3"}))
    assert logged(spool) == [("tags", {key: str(i + 1)}) for i, key in enumerate("abc")]


def many(spool, name):
    for number in range(50):
        spool.append(("tags", {name: str(number) * 500}))


def test_processes_of_one_run_share_a_spool(tmp_path):
    spool = Spool(tmp_path)
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=many, args=(spool, name)) for name in "ab"]
    for other in others:
        other.start()
    many(spool, "c")
    for other in others:
        other.join()
    assert len(logged(spool)) == 150


def test_one_process_sends(tmp_path):
    spool = Spool(tmp_path)
    assert spool.acquire()
    other = pickle.loads(pickle.dumps(spool))
    assert not other.acquire()
    spool.release()
    assert other.acquire()
    other.remove()
    assert not tmp_path.exists()


def test_what_is_refused_is_set_aside(tmp_path):
    spool = Spool(tmp_path)
    spool.refuse(Entry("params", {"a": "1"}, 0), "no")
    assert spool.refused == 1


@pytest.mark.parametrize(
    ("header", "uri"),
    [
        ({"uri": "sqlite:////old/h/mlflow.db", "home": "/old/h"}, "sqlite:////new/mlflow.db"),
        ({"uri": "sqlite:////old/h/mlflow.db"}, "sqlite:////new/mlflow.db"),  # of version 0.1.0
        (
            {"uri": "sqlite:////old/h/mlflow.db", "folder": "/old/h/staged/1", "staged": True},
            "sqlite:////new/mlflow.db",
        ),
        ({"uri": "sqlite:////team/mlflow.db", "home": "/old/h"}, "sqlite:////team/mlflow.db"),  # was never in the home
        ({"uri": "http://team:5000", "folder": "/old/h/staged/1", "staged": True}, "http://team:5000"),
        ({"uri": "postgresql://me:***@host/db", "folder": "/a", "staged": False}, "postgresql://me:***@host/db"),
    ],
)
def test_the_store_of_a_spool_that_was_moved_with_its_home(header, uri):
    known = {"folder": "/old/h/artifacts/x/1/artifacts", "staged": False}
    assert store_uri({**known, **header}, Path("/new")) == uri
