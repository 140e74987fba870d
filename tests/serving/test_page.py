"""The page of `xray serve` in a real browser, driven by `page.mjs`; axe-core judges whether everybody can use it."""

import csv
import shutil
import subprocess
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from tests.pacs.test_orthanc import picture
from tests.serving.test_server import TOKEN, film, serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PACKAGES = ("playwright-core@1", "axe-core@4")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script and the packages that it imports."""
    if CHROMIUM is None or not shutil.which("npm"):
        pytest.skip("chromium or npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    shutil.copy(Path(__file__).with_name("page.mjs"), folder)
    command = ["npm", "install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
    if subprocess.run(command, cwd=folder, capture_output=True, timeout=300).returncode:
        pytest.skip("npm cannot install playwright-core and axe-core")
    return folder


@pytest.mark.long
def test_readers_use_the_page_in_a_browser(tmp_path, node):
    films, output = tmp_path / "films", tmp_path / "output"
    for folder in (films, output):
        folder.mkdir()
    for number in range(4):
        (films / f"DOE^JANE {number}.png").write_bytes(film(number))
    (films / "DOE^JANE").write_bytes(picture(4))
    Image.open(BytesIO(film(5))).save(films / "5.jpg")
    (films / "<img src=x onerror=alert(1)>.png").write_bytes(b"text")
    with serving(tmp_path, f"keep={tmp_path / 'kept'}", XRAY_SERVE_TOKEN=TOKEN) as server:
        url = f"http://127.0.0.1:{server.port}/"
        command = ["node", node / "page.mjs", CHROMIUM, url, TOKEN, films, output]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    for place in (output / "labels.csv", tmp_path / "kept" / "labels.csv"):
        *_, row = csv.DictReader(place.read_text(encoding="utf-8").splitlines())
        assert row["opinion"] == "disagree"
        assert len(row["sha256"]) == 64
        assert row["label"] in {"NORMAL", "PNEUMONIA"}
        assert row["note"] == '\'=1+1, "rotated"'
        assert "JANE" not in place.read_text(encoding="utf-8")
