"""Files of our own are not believed: caches, predictions, databases that were damaged (kind C)."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from xray_pneumonia.data.audit import audit
from xray_pneumonia.data.images import cache
from xray_pneumonia.data.images.cache import open_cache
from xray_pneumonia.data.records import scan


def header(path):
    return path.stat().st_size - np.load(path).nbytes


DAMAGES = {
    "zeroed": lambda data, start: data[:start] + bytes(len(data) - start),
    "one byte": lambda data, start: data[:-7] + bytes([data[-7] ^ 255]) + data[-6:],
    "cut": lambda data, start: data[: len(data) // 2],
    "emptied": lambda data, start: b"",
    "another shape": lambda data, start: data.replace(b"32, 32", b"32, 16"),
}


@pytest.fixture
def records(xrays):
    return scan(xrays)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_cache_is_made_again(records, tmp_path, caplog, kind):
    first = open_cache(records, folder=tmp_path, image_size=32)
    cached = first.folder / "images.npy"
    whole = cached.read_bytes()
    cached.write_bytes(DAMAGES[kind](whole, header(cached)))
    again = open_cache(records, folder=tmp_path, image_size=32)
    assert caplog.text.count("is damaged") == 1
    assert cached.read_bytes() == whole
    assert (again.images == np.load(cached)).all()


def test_a_cache_that_was_copied_is_compared_as_a_whole_once(records, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "BLOCK", 4096)
    open_cache(records, folder=tmp_path / "a", image_size=64)
    hashed, hash_blocks = [], cache._hash_blocks
    monkeypatch.setattr(cache, "_hash_blocks", lambda *given: hashed.append(len(given[1])) or hash_blocks(*given))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for _ in range(2):
        open_cache(records, folder=tmp_path / "b", image_size=64)
    assert hashed[0] > cache.SAMPLED >= hashed[-2]


def test_a_damaged_audit_is_made_again(records, tmp_path):
    opened = open_cache(records, folder=tmp_path, image_size=32)
    first = audit(opened)
    [file] = opened.folder.glob("audit-*.json")
    for damage in (b"", b"[]", bytes(20), file.read_bytes()[:40]):
        file.write_bytes(damage)
        assert audit(opened) == first


def test_a_full_disk_is_named_before_the_cache_is_mapped(xrays, tmp_path):
    if os.geteuid() or subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("may not mount here")
    code = (
        "import sys; from xray_pneumonia.data.images.cache import open_cache; "
        "from xray_pneumonia.data.records import scan; "
        "open_cache(scan(sys.argv[1]), folder=sys.argv[2], image_size=256)"
    )
    (tmp_path / "disk").mkdir()
    inside = 'mount -t tmpfs -o size=1m tmpfs disk && "$@"; code=$?; find disk -name "*.npy"; exit $code'
    command = ["unshare", "-m", "sh", "-c", inside, "sh", sys.executable, "-c", code, str(xrays), "disk/cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")  # not SIGBUS, and the space is given back
    needed = len(scan(xrays)) * 256**2
    assert f"InputError: data.cache_dir=disk/cache: the decoded images need {needed} bytes, and 10" in done.stderr


@pytest.mark.parametrize("tail", [b'{"path": "\xc3', b"[1, 2]\n", b"null\n", b'{"path": 3}\n', b"\x00\x00\n"])
def test_a_torn_last_line_of_predictions_is_read_again(xray, xrays, tmp_path, tail):
    shutil.copytree(xrays / "test", tmp_path / "images")
    asked = ["predict", "input=images", "output=out", "workers=1"]
    assert xray(*asked).code == 0
    lines = tmp_path / "out" / "predictions.jsonl"
    whole = lines.read_bytes()
    kept = whole.splitlines(keepends=True)[:-1]
    lines.write_bytes(b"".join(kept) + tail)
    outcome = xray(*asked)
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(rows) == len(whole.splitlines())
