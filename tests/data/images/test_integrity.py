"""Damaged streams are refused and torn rasters measured; on real X-rays next to none is called torn."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from xray_pneumonia.data.images.integrity import (
    ADAM7,
    TORN,
    require_whole_jpeg,
    require_whole_png,
    tear,
    whole_jpeg,
)
from xray_pneumonia.data.images.limits import ImageError

pytest.importorskip("simplejpeg")
PIXELS = np.add.outer(np.linspace(40, 180, 96), 30 * np.sin(np.linspace(0, 9, 80))).astype(np.uint8)


def encoded(kind, mode="L", **options):
    file = BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, kind, **options)
    return file.getvalue()


def scan_of(jpeg):
    start = jpeg.index(b"\xff\xda")
    return start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")


def halved(data):
    return scan_of(data) + (len(data) - scan_of(data)) // 2


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "RGB"}, {"quality": 100}])
def test_a_whole_jpeg_passes(options):
    require_whole_jpeg(encoded("JPEG", **options))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: halved(data)],
        lambda data: data[: halved(data)] + b"\xff\xd9",
        lambda data: data[: halved(data)] + bytes(len(data) - halved(data)),
        lambda data: data[: halved(data)] + bytes(60) + data[halved(data) + 60 :],
        lambda data: data[:-2] + bytes(50) + b"\xff\xd9",
    ],
    ids=["cut", "ended early", "zeroed tail", "hole", "surplus"],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_damaged_jpeg_is_refused(damage, mode):
    with pytest.raises(ImageError, match="is cut or damaged"):
        require_whole_jpeg(damage(encoded("JPEG", mode)))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "I;16"])
def test_a_whole_png_passes(mode):
    require_whole_png(encoded("PNG", mode))


def test_an_interlaced_png_passes():
    rows = [row for x, y, dx, dy in ADAM7 for row in PIXELS[y::dy, x::dx]]
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", PIXELS.shape[1], PIXELS.shape[0], 8, 0, 0, 0, 1)
    data = png(header, zlib.compress(body))
    assert (np.asarray(Image.open(BytesIO(data))) == PIXELS).all()
    require_whole_png(data)


def png(header, *parts, end=True):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    chunks = [chunk(b"IHDR", header), *(chunk(b"IDAT", part) for part in parts)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + (chunk(b"IEND", b"") if end else b"")


HEADER = struct.pack(">IIBBBBB", PIXELS.shape[1], PIXELS.shape[0], 8, 0, 0, 0, 0)
ROWS = [b"\0" + row.tobytes() for row in PIXELS]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(HEADER, zlib.compress(b"".join(ROWS[:48]))), "its pixels take 7776 bytes, 3888 are there"),
        (png(HEADER, zlib.compress(b"".join(ROWS) * 400)), "its pixels take 7776 bytes"),
        (png(HEADER, zlib.compress(b"".join(ROWS))[:-60]), "its pixels take 7776 bytes"),
        (png(HEADER, zlib.compress(b"".join(ROWS)), end=False), "its last chunk is missing"),
        (png(HEADER, b"no deflate stream"), "cannot be inflated"),
    ],
    ids=["half of the rows", "bomb", "cut stream", "no end", "no stream"],
)
def test_a_damaged_png_is_refused(data, message):
    with pytest.raises(ImageError, match=message):
        require_whole_png(data)


def test_a_wrong_checksum_of_a_png_is_refused():
    data = encoded("PNG")
    place = data.index(b"IDAT") + 20
    with pytest.raises(ImageError, match="wrong checksum of chunk 'IDAT'"):
        require_whole_png(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


def damaged(pixels, kind):
    flat, size = pixels.ravel().copy(), pixels.size
    start = size // 3 + pixels.shape[1] // 2
    if kind == "hole":
        flat[start : start + size // 20] = 0
    elif kind == "zeroed tail":
        flat[start:] = 0
    elif kind == "cut":
        flat = np.concatenate([flat[:start], flat[start + 40 :], np.zeros(40, np.uint8)])
    elif kind == "swapped blocks":
        block = size // 8
        first, second = flat[block : 2 * block].copy(), flat[5 * block : 6 * block].copy()
        flat[block : 2 * block], flat[5 * block : 6 * block] = second, first
    return flat.reshape(pixels.shape)


def test_a_smooth_raster_is_whole_and_a_torn_one_is_not():
    assert tear(PIXELS) < TORN
    for kind in ("hole", "zeroed tail", "cut", "swapped blocks"):
        assert tear(damaged(PIXELS, kind)) > TORN, kind
    assert tear(np.zeros((4, 100), np.uint8)) == 0


def test_real_xrays_are_whole_and_damaged_ones_torn(real_xrays):
    files = [*sorted((real_xrays / "originals" / "train").rglob("*.jpeg"))[::8]]
    files += sorted((real_xrays / "chest_xray" / "train").rglob("*.jpeg"))[::80]
    rasters = [np.asarray(Image.open(file).convert("L")) for file in files]
    assert len(rasters) > 70
    assert sum(tear(raster) > TORN for raster in rasters) <= 1
    for file in files:
        require_whole_jpeg(file.read_bytes())
    for kind in ("hole", "zeroed tail", "cut", "swapped blocks"):
        missed = sum(tear(damaged(raster, kind)) <= TORN for raster in rasters)
        assert missed == 0, (kind, missed)


@pytest.mark.parametrize(("mode", "scaled"), [("L", (100, 60)), ("L", (50, 30)), ("RGB", (100, 60)), ("RGB", (25, 15))])
def test_a_jpeg_decoded_in_one_pass_has_the_pixels_of_pillow(mode, scaled):
    noise = np.random.default_rng(0).integers(0, 255, (60, 100, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(noise).convert(mode).save(file, "JPEG", progressive=mode == "RGB")
    image = Image.open(file)
    image.draft(mode, scaled)
    found = whole_jpeg(file.getvalue(), colour=mode == "RGB", sides=(100, 60), scaled=image.size)
    assert np.array_equal(found, np.asarray(image))
    with pytest.raises(ImageError, match="two sizes"):
        whole_jpeg(file.getvalue(), colour=mode == "RGB", sides=(60, 100), scaled=image.size)
