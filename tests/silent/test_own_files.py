"""Files of our own are not believed: caches, predictions, databases that were damaged (kind C)."""

import json
import shutil

import pytest


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
