"""The journal: what was said is on the disk, whatever happens to its writer."""

import multiprocessing
import os
import pickle

import pytest

from xray_pneumonia.tracking.journal import Entry, Journal, journals


def said(journal, start=0):
    return [(entry.what, entry.value) for entry in journal.entries(start)]


def test_what_was_said_is_read_back_in_order_and_in_parts(tmp_path):
    journal = Journal(tmp_path / "journal" / "a")
    for number in range(3):
        journal.append("metrics", [["val/loss", float("nan") if number == 1 else number, 0, number]])
    first = next(journal.entries())
    journal.mark_sent(first.end)
    assert len(said(journal)) == 3
    assert [value[0][3] for _, value in said(journal, journal.sent)] == [1, 2]
    assert journal.unsent() == 2
    assert [one.run_id for one in journals(tmp_path)] == ["a"]


def test_an_entry_cut_off_by_a_dead_writer_costs_no_other(tmp_path):
    journal = Journal(tmp_path)
    journal.append("tags", {"a": "1"})
    with (tmp_path / "entries.jsonl").open("ab") as file:
        file.write(b'{"what": "tags", "va')
    assert said(Journal(tmp_path)) == [("tags", {"a": "1"})]
    Journal(tmp_path).append("tags", {"b": "2"})
    assert said(Journal(tmp_path)) == [("tags", {"a": "1"}), ("tags", {"b": "2"})]


def test_a_full_disk_loses_nothing_that_is_said_before_there_is_room_again(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.append("tags", {"a": "1"})
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
            journal.append("tags", {"b": "2"})
    assert said(journal) == [("tags", {"a": "1"})]
    journal.append("tags", {"c": "3"})
    assert said(journal) == [("tags", {key: str(i + 1)}) for i, key in enumerate("abc")]


def many(journal, name):
    for number in range(50):
        journal.append("tags", {name: str(number) * 500})


def test_processes_of_one_run_share_a_journal(tmp_path):
    journal = Journal(tmp_path)
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=many, args=(journal, name)) for name in "ab"]
    for other in others:
        other.start()
    many(journal, "c")
    for other in others:
        other.join()
    assert len(said(journal)) == 150


def test_one_process_sends(tmp_path):
    journal = Journal(tmp_path)
    assert journal.acquire()
    other = pickle.loads(pickle.dumps(journal))
    assert not other.acquire()
    journal.release()
    assert other.acquire()
    other.remove()
    assert not tmp_path.exists()


def test_what_is_refused_is_set_aside(tmp_path):
    journal = Journal(tmp_path)
    journal.refuse(Entry("params", {"a": "1"}, 0), "no")
    assert journal.refused == 1
