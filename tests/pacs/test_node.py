"""The DICOM node: films of known senders are on disk before they are acknowledged, and each is answered once."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from pydicom import DataElement, Dataset, FileMetaDataset, config, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.uid import DigitalXRayImageStorageForPresentation as DX
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt

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
    data.StudyInstanceUID = study or generate_uid(entropy_srcs=["study", str(number)])
    data.SeriesInstanceUID, data.Modality = generate_uid(), "DX"
    data.PatientName, data.PatientID, data.SpecificCharacterSet = "Müller^Jürgen", f"P{number}", "ISO_IR 100"
    return data


@contextmanager
def archive(received: dict[str, Dataset], *, status: int = 0):
    """A storage that keeps what it gets by SOP Instance UID, as archives do."""

    def store(event) -> int:
        data = event.dataset
        received.setdefault(str(data.SOPInstanceUID), data)
        return status

    entity = AE("ARCHIVE")
    entity.supported_contexts = AllStoragePresentationContexts
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
    with node.Node(DicomSettings(**values), host="127.0.0.1", answer=answer) as running_node:
        yield running_node


def send(port: int, *sent: Dataset, title: str = "MODALITY") -> list[int | None]:
    entity = AE(title)
    entity.add_requested_context(DX, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", port, ae_title="XRAY")
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
    "sent", [b"\x01\x00\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n", b"\x04\x00\x00\x00\x00\x02ab"]
)
def test_a_pdu_that_is_too_long_or_none_closes_its_connection_and_nothing_else(tmp_path, sent):
    with running(tmp_path, 1, settle=60.0) as one:
        with socket.create_connection(("127.0.0.1", one.port), 10) as peer:
            peer.sendall(sent)
            with suppress(ConnectionError):  # an abort, then the end
                while peer.recv(100):
                    pass
        assert send(one.port, film()) == [0]


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


def test_a_full_disk_is_told_to_the_sender(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(films, "_write", full)
    with running(tmp_path, 1) as one:
        assert send(one.port, film()) == [node.NO_ROOM]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"allow": []}, "dicom.allow"),
        ({"allow": ["MODALITY"]}, "dicom.allow"),
        ({"allow": ["MODALITY@no host"]}, "dicom.allow"),
        ({"allow": ["MODALITY@nowhere.invalid"]}, "nowhere.invalid"),
        ({"reply_to": None}, "dicom.reply_to"),
        ({"reply_to": "ARCHIVE@host"}, "dicom.reply_to"),
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


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dicom3tools is not installed")
def test_report_and_capture_conform_to_their_definitions(tmp_path):
    unread = {"error": "truncated", "message": "is cut"}
    written = [replies.report(film(), row, READER, comment="Ü 93 %") for row in (ROW, unread)]
    written.append(replies.capture(film(), np.zeros((64, 64, 3), np.uint8), READER, lines=["pneumonia"]))
    for data in written:
        (tmp_path / "reply.dcm").write_bytes(data)
        done = subprocess.run(["dciodvfy", "-new", tmp_path / "reply.dcm"], capture_output=True, encoding="latin-1")
        assert "Error" not in done.stderr + done.stdout


KILLED = """
import os, sys, time
from pathlib import Path
from tests.pacs.test_node import node, running
node.POLL = 0.02
for _ in sys.stdin:  # imports once, then a node for each line
    if not (child := os.fork()):
        with running(Path(sys.argv[1]), int(sys.argv[2]), port=int(sys.argv[3])):
            print(os.getpid(), flush=True)
            time.sleep(600)
    os.waitpid(child, 0)
"""


def delivered(port: int, data: Dataset) -> bool:
    """Send a film to a node that may die of a kill at any moment."""
    with suppress(RuntimeError):  # the association ended before the film was sent
        return send(port, data) == [0]
    return False


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sockets of pynetdicom's dead peers
@pytest.mark.parametrize(("kills", "count"), [(20, 60), (200, 500)])
def test_kills_lose_and_double_nothing(tmp_path, kills, count):
    """Films are sent again until they are acknowledged, as modalities do, while the node is killed over and over."""
    received: dict[str, Dataset] = {}
    with archive(received) as port:
        with running(tmp_path / "probe", port) as probe:
            mine = probe.port
        command = [sys.executable, "-c", KILLED, tmp_path / "films", str(port), str(mine)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen(command, **pipes, text=True, bufsize=1, cwd=Path(__file__).parents[2])
        rng, waiting = np.random.default_rng(0), [film(number + 100) for number in range(count)]
        for kill in range(kills + 1):
            process.stdin.write("\n")
            child = int(process.stdout.readline())
            end = time.monotonic() + rng.uniform(0, 0.5)
            while time.monotonic() < end or (kill == kills and waiting):
                if waiting and delivered(mine, waiting[0]):
                    waiting.pop(0)
            if kill == kills:
                wait(lambda: len(received) == 2 * count, 300)
                time.sleep(1)
            os.kill(child, signal.SIGKILL)
        process.communicate(timeout=20)
    assert not waiting
    assert len(received) == 2 * count
