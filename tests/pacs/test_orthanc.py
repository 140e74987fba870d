"""Through a real archive: Orthanc gets a film, forwards it to `xray serve`, and has the answer in its study.

Needs Debian's `orthanc`, and `dcmtk` and `dicom3tools` for what validates the replies.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from tests.pacs.test_node import film, wait
from tests.serving.test_server import PATIENTS, serving

from xray_pneumonia.data.synthetic import draw

ORTHANC = shutil.which("Orthanc") or ("/usr/sbin/Orthanc" if Path("/usr/sbin/Orthanc").exists() else None)
PROGRAMS = [folder for folder in os.environ["PATH"].split(os.pathsep) if folder != str(Path(sys.executable).parent)]
STORESCU = shutil.which("storescu", path=os.pathsep.join(PROGRAMS))  # dcmtk's; pynetdicom installs one of that name
FORWARD = """
function OnStoredInstance(instance, tags, metadata, origin)
  if tags["Modality"] == "DX" then SendToModality(instance, "xray") end
end
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def picture(number: int, *, cut: int = 0) -> bytes:
    """A chest film of a synthetic patient as DICOM; `cut` bytes of its pixels are missing."""
    data: Dataset = film(number)
    pixels = (255 * draw(PATIENTS[number], 0)).astype(np.uint8)
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PixelRepresentation, data.PhotometricInterpretation = 1, 0, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.BodyPartExamined, data.ViewPosition = 7, "CHEST", "PA"
    data.PixelData = pixels.tobytes()[: pixels.size - cut]
    buffer = BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


class Archive:
    """A running Orthanc."""

    def __init__(self, port: int, dicom: int) -> None:
        self.port, self.dicom = port, dicom

    def get(self, path: str, data: bytes | None = None):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", data, 20) as answer:
            body = answer.read()
        return json.loads(body) if answer.headers.get_content_type() == "application/json" else body

    def instances(self, study: str) -> dict[str, list[str]]:
        """Modality -> the instances of a study."""
        found: dict[str, list[str]] = {}
        for series in self.get(f"/studies/{study}/series"):
            found.setdefault(series["MainDicomTags"]["Modality"], []).extend(series["Instances"])
        return found


@contextmanager
def orthanc(folder: Path, node_port: int):
    port, dicom = free_ports(2)
    folder.mkdir()
    (folder / "forward.lua").write_text(FORWARD)
    settings = {
        "Name": "test", "StorageDirectory": str(folder), "IndexDirectory": str(folder), "Plugins": [],
        "HttpPort": port, "DicomPort": dicom, "DicomAet": "ORTHANC", "LuaScripts": [str(folder / "forward.lua")],
        "RemoteAccessAllowed": False, "DicomModalities": {"xray": ["XRAY", "127.0.0.1", node_port]},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([ORTHANC, folder / "orthanc.json"], stdout=log, stderr=log)
    try:
        one = Archive(port, dicom)
        wait(lambda: answers(one), 60)
        yield one
    finally:
        process.terminate()
        process.wait(30)


def answers(archive: Archive) -> bool:
    try:
        return bool(archive.get("/system"))
    except OSError:
        return False


@pytest.mark.long
@pytest.mark.skipif(ORTHANC is None, reason="orthanc is not installed")
def test_an_archive_forwards_films_and_finds_report_and_capture_in_the_study(tmp_path):
    (node_port,) = free_ports(1)
    with orthanc(tmp_path / "orthanc", node_port) as archive:
        options = [f"dicom.port={node_port}", "dicom.allow=[ORTHANC@127.0.0.1]", "dicom.settle=1"]
        options.append(f"dicom.reply_to=ORTHANC@127.0.0.1:{archive.dicom}")
        with serving(tmp_path, *options):
            good = archive.get("/instances", picture(0))["ParentStudy"]
            cut = archive.get("/instances", picture(1, cut=1000))["ParentStudy"]
            wait(lambda: {"SR", "OT"} <= set(archive.instances(good)) and "SR" in archive.instances(cut), 120)
        found = archive.instances(good)
        assert {kind: len(all_) for kind, all_ in found.items()} == {"DX": 1, "SR": 1, "OT": 1}
        assert {kind: len(all_) for kind, all_ in archive.instances(cut).items()} == {"DX": 1, "SR": 1}
        tags = archive.get(f"/instances/{found['OT'][0]}/simplified-tags")
        assert "not for diagnosis" in tags["SeriesDescription"]
        shown = Image.open(BytesIO(archive.get(f"/instances/{found['OT'][0]}/preview"))).convert("RGB")
        bar = np.asarray(shown)[-120:].reshape(-1, 3).astype(int)
        assert ((bar[:, :2].min(axis=1) > 200) & (bar[:, 2] < 80)).any(), "the warning is not burnt in"
        assert "could not be read" in text_of(archive, archive.instances(cut)["SR"][0], tmp_path)
        assert "among patients of whom" in text_of(archive, found["SR"][0], tmp_path)
        validate(archive, found["OT"][0], tmp_path)


def text_of(archive: Archive, instance: str, folder: Path) -> str:
    """The text of a report, by dcmtk, which must not warn."""
    validate(archive, instance, folder)
    command = ["dsrdump", "+Pl", folder / "reply.dcm"]
    done = subprocess.run(command, capture_output=True, encoding="latin-1", check=True)
    assert not done.stderr, done.stderr
    return done.stdout


def validate(archive: Archive, instance: str, folder: Path) -> None:
    (folder / "reply.dcm").write_bytes(archive.get(f"/instances/{instance}/file"))
    if shutil.which("dciodvfy"):
        done = subprocess.run(["dciodvfy", "-new", folder / "reply.dcm"], capture_output=True, encoding="latin-1")
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


@pytest.mark.long
@pytest.mark.skipif(ORTHANC is None or STORESCU is None, reason="orthanc or dcmtk is not installed")
@pytest.mark.parametrize(("kills", "count"), [(20, 60), (200, 500)])
def test_kills_lose_and_double_nothing(tmp_path, kills, count):
    """`storescu` sends films again until they are acknowledged, while the node is killed over and over."""
    (mine,) = free_ports(1)
    films, rng = tmp_path / "films", np.random.default_rng(0)
    films.mkdir()
    with orthanc(tmp_path / "orthanc", mine) as archive:
        command = [sys.executable, "-c", KILLED, tmp_path / "node", str(archive.dicom), str(mine)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen(command, **pipes, text=True, bufsize=1, cwd=Path(__file__).parents[2])
        for kill in range(kills + 1):
            process.stdin.write("\n")
            child = int(process.stdout.readline())
            killer = Timer(rng.uniform(0, 0.5), os.kill, (child, signal.SIGKILL))
            if kill < kills:
                killer.start()
            for number in range(kill * count // kills, min(count, (kill + 1) * count // kills)):
                film(100 + number).save_as(films / f"{number}.dcm", enforce_file_format=True)
            storescu(films, mine)
            if kill < kills:
                killer.join()
        wait(lambda: archive.get("/statistics")["CountInstances"] == 2 * count, 300)
        time.sleep(2)
        os.kill(child, signal.SIGKILL)
        process.communicate(timeout=20)
        assert not list(films.glob("*.dcm")), "films were never acknowledged"
        found = [dcmread(BytesIO(archive.get(f"/instances/{one}/file"))) for one in archive.get("/instances")]
    expected = [(kind, str(film(100 + number).SOPInstanceUID)) for kind in ("SR", "OT") for number in range(count)]
    assert sorted((one.Modality, referenced(one)) for one in found) == sorted(expected)


def storescu(films: Path, port: int) -> None:
    """Send the films that no node has acknowledged yet; those that it acknowledges are renamed."""
    command = [STORESCU, "+rn", "-aet", "MODALITY", "-aec", "XRAY", "127.0.0.1", str(port)]
    subprocess.run([*command, *films.glob("*.dcm")], capture_output=True, check=False)
    for path in films.glob("*.bad"):
        path.rename(path.with_suffix(""))


def referenced(reply: Dataset) -> str:
    """The film that a reply is about."""
    if reply.Modality == "OT":
        return str(reply.SourceImageSequence[0].ReferencedSOPInstanceUID)
    series = reply.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    return str(series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
