"""Through a real archive: Orthanc gets a film, forwards it to `xray serve`, and has the answer in its study.

Needs Debian's `orthanc`, and `dcmtk` and `dicom3tools` for what validates the replies.
"""

import json
import shutil
import socket
import subprocess
import urllib.request
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from tests.pacs.test_node import film, wait
from tests.serving.test_server import PATIENTS, serving

from xray_pneumonia.data.synthetic import draw

ORTHANC = shutil.which("Orthanc") or ("/usr/sbin/Orthanc" if Path("/usr/sbin/Orthanc").exists() else None)
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
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = (
        data.SOPClassUID,
        data.SOPInstanceUID,
    )
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
