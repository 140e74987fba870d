"""Files of our own are not believed: caches, predictions, databases that were damaged (kind C)."""

import json
import shutil

import numpy as np
import pytest


def header(path):
    return path.stat().st_size - np.load(path).nbytes


DAMAGES = {
    "zeroed": lambda data, start: data[:start] + bytes(len(data) - start),
    "one byte": lambda data, start: data[:-7] + bytes([data[-7] ^ 255]) + data[-6:],
    "cut": lambda data, start: data[: len(data) // 2],
    "emptied": lambda data, start: b"",
    "another shape": lambda data, start: data.replace(b"32, 32", b"32, 16"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_cache_is_made_again(xray, tiny, tmp_path, kind):
    asked = ["train", *tiny, f"data.cache_dir={tmp_path}/cache"]
    first = xray(*asked)
    [cached] = (tmp_path / "cache").glob("*/images.npy")
    whole = cached.read_bytes()
    cached.chmod(0o644)
    cached.write_bytes(DAMAGES[kind](whole, header(cached)))
    again = xray(*asked)
    assert again.code == 0, again.err
    assert "damaged" in again.err
    assert cached.read_bytes() == whole
    assert again.out.splitlines()[-1].split()[1] == first.out.splitlines()[-1].split()[1]


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
