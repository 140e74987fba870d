"""The DICOM node: films of known senders are on disk before they are acknowledged, and each is answered once."""

import shutil
import socket
import sqlite3
import subprocess
import time
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from pydicom import DataElement, Dataset, FileMetaDataset, config, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    generate_uid,
)
from pydicom.uid import DigitalXRayImageStorageForPresentation as DX
from pydicom.uid import SecondaryCaptureImageStorage as SecondaryCapture
from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt

from xray_pneumonia.errors import InputError
from xray_pneumonia.pacs import bounds, films, node, replies
from xray_pneumonia.pacs.settings import DicomSettings

READER = replies.Reader("final", "0" * 12, "PNEUMONIA")
ROW = {"decision": "pneumonia", "label": "PNEUMONIA", "probability": 0.93, "error": ""}


def film(number: int = 0, study: str | None = None) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = DX, generate_uid(entropy_srcs=["film", str(number)])
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = DX, data.SOPInstanceUID
    data.StudyInstanceUID = study or generate_uid(entropy_srcs=["study", str(number)])
    data.SeriesInstanceUID, data.Modality = generate_uid(), "DX"
    data.PatientName, data.PatientID, data.SpecificCharacterSet = "Müller^Jürgen", f"P{number}", "ISO_IR 100"
    return data


@contextmanager
def archive(received: dict[str, Dataset], *, status: int = 0, classes=AllStoragePresentationContexts):
    """A storage that keeps what it gets by SOP Instance UID, as archives do."""

    def store(event) -> int:
        data = event.dataset
        received.setdefault(str(data.SOPInstanceUID), data)
        return status

    entity = AE("ARCHIVE")
    entity.supported_contexts = classes
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()


def answer(path: Path, data: Dataset) -> list[bytes]:
    if data.PatientID == "P13":
        raise ValueError("no reply can be written")
    picture = np.zeros((64, 64, 3), np.uint8)
    return [
        replies.report(data, ROW, READER, comment="Ü 93 %"),
        replies.capture(data, picture, READER, lines=["pneumonia"]),
    ]


@contextmanager
def running(folder: Path, archive_port: int, **changes):
    values = {"port": 0, "ae_title": "XRAY", "allow": ["MODALITY@127.0.0.1"], "settle": 0.0, "folder": str(folder)}
    values |= {"reply_to": f"ARCHIVE@127.0.0.1:{archive_port}", **changes}
    with node.Node(DicomSettings(**values), host="127.0.0.1", answer=answer, modalities=["CR", "DX"]) as running_node:
        yield running_node


def send(port: int, *sent: Dataset, title: str = "MODALITY", called: str = "XRAY") -> list[int | None]:
    entity = AE(title)
    for kind in {one.SOPClassUID for one in sent}:
        entity.add_requested_context(kind, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", port, ae_title=called)
    if not association.is_established:
        return [None] * len(sent)
    try:
        return [association.send_c_store(one).get("Status") for one in sent]
    finally:
        association.release()


def wait(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(node, "POLL", 0.05)


def test_each_film_gets_its_report_and_capture_in_its_study_once(tmp_path):
    received: dict[str, Dataset] = {}
    with archive(received) as port, running(tmp_path, port) as one:
        assert send(one.port, film(0), film(1), film(0)) == [0, 0, 0]
        wait(lambda: one.counts().get("sent") == 2)
        assert send(one.port, film(1)) == [0]  # sent again: answered before
        time.sleep(0.3)
    assert len(received) == 4
    for number in range(2):
        mine = [data for data in received.values() if data.PatientID == f"P{number}"]
        assert {data.Modality for data in mine} == {"SR", "OT"}
        assert {data.StudyInstanceUID for data in mine} == {film(number).StudyInstanceUID}
        assert len({data.SeriesInstanceUID for data in mine}) == 2
        assert all(str(data.PatientName) == "Müller^Jürgen" for data in mine)
    assert not list((tmp_path / "inbox").iterdir())
    assert not list((tmp_path / "outbox").iterdir())


def test_what_a_kill_interrupts_is_done_after_the_next_start_with_the_same_uids(tmp_path):
    kept = films.Films(tmp_path)
    for number in range(3):
        data = film(number)
        path = tmp_path / "x.dcm"
        data.save_as(path, enforce_file_format=True)
        kept.receive(path.read_bytes(), instance=data.SOPInstanceUID, study=data.StudyInstanceUID)
    first, second, _ = kept.settled(seconds=0)
    kept.answer(first, answer(kept.path(first), dcmread(kept.path(first))))
    kept.answer(second, answer(kept.path(second), dcmread(kept.path(second))))
    expected = {dcmread(path).SOPInstanceUID for path in kept.replies(first)}
    (tmp_path / "inbox" / "half.1.tmp").write_bytes(b"cut")
    (tmp_path / "inbox" / f"{'0' * 32}.dcm").write_bytes(b"killed before the acknowledgement")
    kept.close()
    received: dict[str, Dataset] = {}
    with archive(received) as port, running(tmp_path, port) as one:
        wait(lambda: one.counts() == {"sent": 3})
    assert len(received) == 6
    assert expected < set(received)
    assert not list((tmp_path / "inbox").iterdir())


def test_strangers_and_junk_are_refused(tmp_path):
    with running(tmp_path, 1) as one:
        assert send(one.port, film(), title="STRANGER") == [None]
        assert send(one.port, film(), called="OTHER") == [None]
        for uid in ("", "<script>", "1" * 65, "../../x"):
            empty = film()
            empty.StudyInstanceUID = uid
            assert send(one.port, empty) == [node.UNCLEAR]
    with running(tmp_path, 1, allow=["MODALITY@192.0.2.1"]) as one:  # the title of a known sender, from elsewhere
        with socket.create_connection(("127.0.0.1", one.port), 10) as peer:
            assert peer.recv(1) == b""
        assert one.counts() == {}
    with running(tmp_path, 1, settle=60.0, allow=["MODALITY@127.0.0.1", "OTHER@192.0.2.1"]) as one:
        assert send(one.port, film(), title="OTHER") == [node.NOT_AUTHORISED]
    with running(tmp_path, 1, settle=60.0, allow=["MODALITY@localhost"]) as one:
        assert send(one.port, film()) == [0]


@pytest.mark.parametrize(
    "sent",
    [
        b"\x01\x00\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x04\x00\x00\x00\x00\x02ab",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(508),  # TLS
    ],
)
def test_a_pdu_that_is_too_long_or_none_closes_its_connection_and_nothing_else(tmp_path, monkeypatch, sent):
    monkeypatch.setattr(bounds, "FIRST_SECONDS", 0.5)
    with running(tmp_path, 1, settle=60.0) as one:
        with socket.create_connection(("127.0.0.1", one.port), 10) as peer:
            peer.sendall(sent)
            with suppress(ConnectionError):  # an abort, then the end
                while peer.recv(100):
                    pass
        assert send(one.port, film()) == [0]


def test_no_film_may_come_deflated_since_reading_it_would_inflate_it_without_bounds(tmp_path):
    with running(tmp_path, 1) as one:
        entity = AE("MODALITY")
        entity.add_requested_context(DX, [DeflatedExplicitVRLittleEndian])
        entity.add_requested_context(DX, [JPEG2000Lossless])
        association = entity.associate("127.0.0.1", one.port, ae_title="XRAY")
        assert [context.transfer_syntax for context in association.accepted_contexts] == [[JPEG2000Lossless]]
        association.release()


def test_a_crowd_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(node, "FIRST_SECONDS", 0.5)
    with running(tmp_path, 1, settle=60.0) as one:
        crowd = [socket.create_connection(("127.0.0.1", one.port), 10) for _ in range(4)]
        assert crowd[3].recv(1) == b""
        for peer in crowd:
            peer.close()
        wait(lambda: not one._server.active_associations)
        assert send(one.port, film()) == [0]


NASTY = {
    "PatientName": "<script>alert(1)</script>^'; DROP TABLE films", "PatientID": "x" * 300, "StudyDate": "garbage",
    "StudyTime": "9999", "PatientSex": "XX", "PatientBirthDate": "2020-01-01", "AccessionNumber": "a" * 99,
    "ReferringPhysicianName": "\x1b$B", "StudyID": "\u202e", "SpecificCharacterSet": "ISO_IR 999",
    "PatientOrientation": ["garbled", "F"],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the sender, which writes them
def test_a_malformed_attribute_keeps_no_film_from_its_report_and_stands_in_no_log(tmp_path, caplog, capfd):
    received: dict[str, Dataset] = {}
    nasty = [film(number) for number in range(len(NASTY))]
    for data, (name, value) in zip(nasty, NASTY.items(), strict=True):
        data[name] = DataElement(name, dictionary_VR(name), value, validation_mode=config.IGNORE)
    with archive(received) as port, running(tmp_path, port) as one:
        assert set(send(one.port, *nasty)) == {0}
        wait(lambda: one.counts() == {"sent": len(NASTY)})
    assert len(received) == 2 * len(NASTY)
    said = caplog.text + "".join(capfd.readouterr())
    assert not [value for value in NASTY.values() if str(value) in said]


def test_replies_wait_for_the_archive_and_a_film_without_one_holds_up_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(node, "LONGEST_PAUSE", 0.1)
    received: dict[str, Dataset] = {}
    with archive(received, status=0xA700) as port, running(tmp_path, port) as one:
        send(one.port, film(13), film(0))
        wait(lambda: one.counts() == {"failed": 1, "answered": 1} and received)
    with archive(received) as port, running(tmp_path, port) as one:
        wait(lambda: one.counts() == {"failed": 1, "sent": 1})


def test_a_reply_that_the_archive_refuses_holds_up_no_other_and_is_tried_again(tmp_path, monkeypatch):
    received: dict[str, Dataset] = {}
    with archive(received, classes=[build_context(SecondaryCapture)]) as port, running(tmp_path, port) as one:
        send(one.port, film(0))  # this archive takes no reports
        wait(lambda: one.counts() == {"refused": 1})
        assert one.events == {"received": 1, "answered": 1, "failed_sends": 1}
        monkeypatch.setattr(node, "SET_ASIDE", 0.0)
        wait(lambda: one.events["failed_sends"] > 1)
    with archive(received) as port, running(tmp_path, port) as one:
        wait(lambda: one.counts() == {"sent": 1})


def test_what_is_no_film_is_passed_over_and_no_reply_is_answered(tmp_path):
    """An archive may forward whatever it gets, our replies among it."""
    received: dict[str, Dataset] = {}
    with archive(received) as port, running(tmp_path, port) as one:
        send(one.port, film(0))
        wait(lambda: one.counts() == {"sent": 1})
        slice_ = film(1)
        slice_.SOPClassUID, slice_.Modality = CTImageStorage, "CT"
        for reply in received.values():
            reply.file_meta = film().file_meta
        assert send(one.port, *received.values(), slice_) == [0, 0, 0]
        odd = film(2)
        odd.SOPClassUID = SecondaryCapture  # a film by its modality
        assert send(one.port, odd) == [0]
        wait(lambda: one.counts() == {"sent": 2})
        assert one.events["passed_over"] == 3


def test_a_film_that_comes_again_with_other_content_is_told(tmp_path, caplog):
    with running(tmp_path, 1, settle=60.0) as one:
        again = film()
        assert send(one.port, again, again) == [0, 0]
        assert "other content" not in caplog.text
        again.PatientID = "OTHER"
        assert send(one.port, again) == [0]
        assert "other content" in caplog.text
        assert one.counts() == {"received": 1}


def test_a_clock_that_is_set_back_keeps_no_film_waiting(tmp_path, monkeypatch):
    kept = films.Films(tmp_path)
    kept.receive(b"film", instance="1", study="1")
    now = time.time()
    assert not kept.settled(seconds=60)
    monkeypatch.setattr(films.time, "time", lambda: now - 10**6)
    (waiting,) = kept.settled(seconds=60)
    kept.fail(waiting)
    kept.try_again(seconds=60)
    assert not kept.settled(seconds=-1)
    monkeypatch.setattr(films.time, "time", lambda: now - 2 * 10**6)
    kept.try_again(seconds=60)
    assert kept.settled(seconds=60) == [waiting]


def test_one_folder_is_used_by_one_server(tmp_path):
    with (
        running(tmp_path, 1),
        pytest.raises(InputError, match=r"dicom\.folder.*another server"),
        running(tmp_path, 1),
    ):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"dicom\.folder"), running(tmp_path / "file", 1):
        pass


def test_a_full_disk_is_told_to_the_sender_and_leaves_room_for_what_is_under_way(tmp_path, monkeypatch):
    received: dict[str, Dataset] = {}
    with archive(received) as port, running(tmp_path, port, settle=1.0) as one:
        assert send(one.port, film(0)) == [0]
        monkeypatch.setattr(films.shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * films.SPARE // 2))
        assert send(one.port, film(1)) == [node.NO_ROOM]
        wait(lambda: one.counts() == {"sent": 1})
        monkeypatch.setattr(films, "_write", Mock(side_effect=sqlite3.OperationalError("disk is full")))
        assert send(one.port, film(1)) == [node.NO_ROOM]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"allow": []}, "dicom.allow"),
        ({"allow": ["MODALITY"]}, "dicom.allow"),
        ({"allow": ["MODALITY@no host"]}, "dicom.allow"),
        ({"allow": ["MODALITY@nowhere.invalid"]}, "nowhere.invalid"),
        ({"reply_to": None}, "dicom.reply_to"),
        ({"reply_to": "ARCHIVE@host"}, "dicom.reply_to"),
        ({"reply_to": "ARCHIVE@host:99999"}, "dicom.reply_to"),
        ({"ae_title": "A" * 17}, "dicom.ae_title"),
    ],
)
def test_senders_and_archive_must_be_named(tmp_path, changes, key):
    with pytest.raises(InputError, match=key), running(tmp_path, 1, **changes):
        pass


@pytest.mark.skipif(not shutil.which("dsrdump"), reason="dcmtk is not installed")
@pytest.mark.parametrize("row", [ROW, {"error": "truncated", "message": "is cut"}])
def test_dcmtk_reads_the_report_without_a_warning(tmp_path, row):
    (tmp_path / "report.dcm").write_bytes(replies.report(film(), row, READER, comment="Ü"))
    done = subprocess.run(["dsrdump", tmp_path / "report.dcm"], capture_output=True, encoding="latin-1", check=True)
    assert "Müller^Jürgen" in done.stdout
    assert not done.stderr, done.stderr
    assert "Pneumonia" in done.stdout
    assert ("Indeterminate" if row.get("error") else "Present") in done.stdout


def test_every_word_of_a_capture_is_in_the_picture():
    words = "normal, probability 2 %: speaks against pneumonia; other findings are unseen"
    data = replies.capture(film(), np.zeros((1024, 400, 3), np.uint8), READER, lines=[words])
    bar = dcmread(BytesIO(data)).pixel_array[1024:]
    assert not bar[:, -5:].any(), "a line is cut"
    assert not bar[-2:].any()
    assert bar[60:].any(), "no second line"


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dicom3tools is not installed")
def test_report_and_capture_conform_to_their_definitions(tmp_path):
    unread = {"error": "truncated", "message": "is cut"}
    written = [replies.report(film(), row, READER, comment="Ü 93 %") for row in (ROW, unread)]
    mirrored = film()
    mirrored.PatientOrientation = ["R", "F"]  # whose picture was mirrored back
    written.append(replies.capture(mirrored, np.zeros((64, 64, 3), np.uint8), READER, lines=["pneumonia"]))
    assert list(dcmread(BytesIO(written[-1])).PatientOrientation) == ["L", "F"]
    for data in written:
        (tmp_path / "reply.dcm").write_bytes(data)
        done = subprocess.run(["dciodvfy", "-new", tmp_path / "reply.dcm"], capture_output=True, encoding="latin-1")
        assert "Error" not in done.stderr + done.stdout
