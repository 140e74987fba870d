"""Decoding in processes that may die: order, limits, what a child may not do, and what becomes of the others."""

import os
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xray_pneumonia.data.files import find_files
from xray_pneumonia.data.images import decode, sandbox
from xray_pneumonia.data.images.limits import DicomRules
from xray_pneumonia.data.images.sandbox import Decoders, Limits

LIMITS = Limits(seconds=20.0, memory_mb=512)
HANG, CRASH, EAT, WRITE, LIE, BABBLE = b"hang", b"crash", b"eat", b"write", b"lie", b"babble"


def png(seed=0):
    pixels = np.add.outer(np.arange(80), np.arange(80)) + np.random.default_rng(seed).integers(0, 20, (80, 80))
    buffer = BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def misbehave(path, size, rules):
    """Stand in for a decoder with a hole that a file knows how to use."""
    data = Path(os.fsdecode(path)).read_bytes()
    if data == HANG:
        time.sleep(600)
    if data == CRASH:
        os.abort()
    if data == EAT:
        try:
            np.ones((64, 2**24))
        except MemoryError:
            return sandbox.written({"code": "too_much_memory"}, b"")
    if data == WRITE:
        try:
            Path(os.fsdecode(path) + ".canary").write_bytes(b"x" * 10)
        except OSError:
            return sandbox.written({"code": "kept_from_writing"}, b"")
    if data == LIE:
        return sandbox.written({"sha256": "../../x", "width": 1, "height": 1}, bytes(size * size))
    if data == BABBLE:
        return b"{}"
    return real(path, size, rules)


real = sandbox.decode_file


def serve_badly(line, size, rules, memory_mb):
    sandbox.decode_file = misbehave
    sandbox.serve(line, size, rules, memory_mb)


def attempts(folder, *, limits=LIMITS, count=2):
    with Decoders(count=count, size=32, rules=DicomRules(), limits=limits) as decoders:
        return [one for batch in decoders.batches(find_files(folder), 7) for one in batch]


def test_files_come_back_in_their_order_as_the_decoder_gives_them(tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02}.png").write_bytes(png(number) if number % 10 else b"no image")
    found = attempts(tmp_path)
    assert [one.file.id for one in found] == [f"{number:02}.png" for number in range(40)]
    assert [one.code for one in found if one.code] == ["not_an_image"] * 4
    alone = decode.decode(png(7), 32)
    np.testing.assert_array_equal(found[7].pixels, alone.pixels)
    assert (found[7].sha256, found[7].width, found[7].mode) == (decode.sha256(png(7)), 80, "L")


def test_refused_files_alone_and_no_files_at_all(tmp_path):
    assert attempts(tmp_path) == []
    for number in range(600):
        os.symlink("/etc/passwd", tmp_path / f"{number}.png")
    assert {one.code for one in attempts(tmp_path, count=1)} == {"link_outside_root"}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (HANG, "timeout"),
        (CRASH, "decoder_died"),
        (EAT, "too_much_memory"),
        (WRITE, "kept_from_writing"),
        (LIE, "decoder_died"),
        (BABBLE, "decoder_died"),
    ],
)
def test_what_a_bad_file_does_to_its_decoder_stays_there(tmp_path, monkeypatch, content, code):
    monkeypatch.setattr(sandbox, "SERVE", f"{__name__}:serve_badly")
    for number in range(20):
        (tmp_path / f"{number:02}.png").write_bytes(png(number))
    (tmp_path / "05.png").write_bytes(content)
    start = time.monotonic()
    found = attempts(tmp_path, limits=Limits(seconds=3.0, memory_mb=512))
    assert [(one.file.id, one.code) for one in found if one.code] == [("05.png", code)]
    assert len(found) == 20
    assert time.monotonic() - start < 60
    assert not any(canary.stat().st_size for canary in tmp_path.glob("*.canary"))


def test_an_image_beyond_the_memory_limit_is_refused(tmp_path):
    buffer = BytesIO()
    Image.fromarray(np.add.outer(np.arange(6000), np.arange(6000)).astype(np.uint8)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    (tmp_path / "b.png").write_bytes(png())
    large, small = attempts(tmp_path, limits=Limits(seconds=60.0, memory_mb=24))
    assert large.code in {"too_much_memory", "truncated"}
    assert small.code == ""


def test_leaving_early_leaves_no_process(tmp_path):
    for number in range(300):
        (tmp_path / f"{number:03}.png").write_bytes(png())
    with Decoders(count=2, size=32, rules=DicomRules(), limits=LIMITS) as decoders:
        next(decoders.batches(find_files(tmp_path), 5))
        children = [worker.child.process for worker in decoders._workers]
    assert not any(child.returncode is None for child in children)
