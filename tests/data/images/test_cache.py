"""The decoded cache."""

import os
import shutil

import numpy as np
import pytest

from xray_pneumonia.data.audit import audit
from xray_pneumonia.data.images import cache as caches
from xray_pneumonia.data.images import sandbox
from xray_pneumonia.data.images.cache import open_cache, release_pages
from xray_pneumonia.data.images.decode import decode, read_bytes
from xray_pneumonia.data.records import scan
from xray_pneumonia.errors import DataRefused


@pytest.fixture
def root(xrays, tmp_path):
    return shutil.copytree(xrays, tmp_path / "xrays")


def test_rows_are_the_decoded_files(root, tmp_path):
    cache = open_cache(scan(root), folder=tmp_path / "cache", image_size=32)
    assert cache.images.shape == (len(cache.records), 32, 32)
    for row in (0, 7, len(cache.records) - 1):
        expected = decode(read_bytes(cache.records["path"][row]), 32)
        np.testing.assert_array_equal(cache.images[row], expected.pixels)
        assert cache.records["width"][row] == expected.width
        assert cache.records["dhash"][row] == expected.dhash
    assert not cache.images.flags.writeable


def test_a_second_opening_decodes_nothing(root, tmp_path, monkeypatch):
    first = open_cache(scan(root), folder=tmp_path / "cache", image_size=32)
    monkeypatch.setattr(caches, "_build", None)
    second = open_cache(scan(root), folder=tmp_path / "cache", image_size=32)
    np.testing.assert_array_equal(first.images, second.images)
    assert first.records.equals(second.records)


def test_a_changed_file_makes_a_new_cache_even_with_its_old_size_and_time(root, tmp_path):
    first = open_cache(scan(root), folder=tmp_path / "cache", image_size=32)
    path = first.records["path"][3]
    facts = os.stat(path)
    data = bytearray(read_bytes(path))
    data[len(data) // 2] ^= 0x10
    with open(path, "wb") as file:
        file.write(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    second = open_cache(scan(root), folder=tmp_path / "cache", image_size=32)
    assert second.folder != first.folder
    assert second.records["sha256"][3] != first.records["sha256"][3]


@pytest.mark.parametrize("what", ["size", "decoder"])
def test_the_key_follows_size_and_decoder(root, tmp_path, monkeypatch, what):
    records = scan(root)
    before = caches.cache_key(records, 32)
    if what == "decoder":
        monkeypatch.setattr(caches.limits, "DECODER_VERSION", 999)
    assert caches.cache_key(records, 64 if what == "size" else 32) != before


def test_a_killed_build_leaves_nothing_that_is_taken_for_a_cache(root, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(caches.os, "replace", die)
        with pytest.raises(Killed):
            open_cache(scan(root), folder=tmp_path / "cache", image_size=32)
    assert not list((tmp_path / "cache").glob("[!.]*/images.npy"))
    assert open_cache(scan(root), folder=tmp_path / "cache", image_size=32).images.any()


def test_broken_files_are_named_and_black(root, tmp_path):
    (root / "train/NORMAL/IM-9999-0001.jpeg").write_bytes(b"no image")
    cache = open_cache(scan(root), folder=tmp_path / "cache", image_size=32)
    broken = cache.records[cache.records["error"] != ""]
    assert broken["id"].tolist() == ["train/NORMAL/IM-9999-0001.jpeg"]
    assert broken["error"].tolist() == ["not_an_image"]
    assert not cache.images[broken.index[0]].any()


def test_what_was_read_of_a_large_cache_is_no_memory_of_the_process(tmp_path):
    import psutil

    np.save(tmp_path / "images.npy", np.ones((2000, 128, 128), np.uint8))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    before = psutil.Process().memory_info().rss
    assert images.sum(dtype=int) == images.size
    mapped = psutil.Process().memory_info().rss - before
    release_pages(images)
    kept = psutil.Process().memory_info().rss - before
    assert mapped - kept > 25 * 2**20
    assert images[1999].sum() == 128 * 128


def test_a_link_is_not_taken_for_its_target(xrays, tmp_path):
    real, linked = shutil.copytree(xrays, tmp_path / "real"), tmp_path / "linked"
    for path in real.glob("*/*/*"):
        link = linked / path.relative_to(real)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    errors = [
        set(open_cache(scan(root), folder=tmp_path / "cache", image_size=32).records["error"])
        for root in (linked, real, linked)
    ]
    assert errors == [{"link_outside_root"}, {""}, {"link_outside_root"}]


def serve_badly(*settings):
    """Stand in for a decoder that one file crashes."""
    real = sandbox.decode_file
    sandbox.decode_file = lambda path, *rest: os.abort() if b"IM-9999" in path else real(path, *rest)
    sandbox.serve(*settings)


def test_a_film_that_crashes_the_decoder_is_named_and_read_again_the_next_time(root, tmp_path, monkeypatch):
    shutil.copy(next(root.rglob("IM-*.jpeg")), root / "train/NORMAL/IM-9999-0001.jpeg")
    expected = open_cache(scan(root), folder=tmp_path / "whole", image_size=32)
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "SERVE", f"{__name__}:serve_badly")
        bad = open_cache(scan(root), folder=tmp_path / "cache", image_size=32)
        with pytest.raises(DataRefused, match=r"IM-9999-0001\.jpeg: decoder_died: ended its decoder"):
            audit(bad).require_clean()
    monkeypatch.setattr(caches, "_build", None)
    mended = open_cache(scan(root), folder=tmp_path / "cache", image_size=32)
    assert not audit(mended).errors
    whole = bad.records["error"] == ""
    assert (len(whole) - whole.sum()) == 1
    np.testing.assert_array_equal(bad.images[whole], expected.images[whole])
    np.testing.assert_array_equal(mended.images, expected.images)
    assert mended.records.equals(expected.records)
    monkeypatch.setattr(caches, "_try_again", None)
    open_cache(scan(root), folder=tmp_path / "cache", image_size=32)
