"""The decoder: what it accepts, what it refuses and with which word; a real file for every row."""

import os
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from xray_pneumonia.data.images.decode import Decoded, decode, read_bytes
from xray_pneumonia.data.images.limits import ImageError

RNG = np.random.default_rng(0)
GRAY = Image.fromarray(
    (np.add.outer(np.arange(120), np.arange(100)) + RNG.integers(0, 20, (120, 100))).astype(np.uint8)
)


def save(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(sides: tuple[int, int], bits: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", *sides, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 one-bit pixels in about a hundred kilobytes."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\0" * 3751) for _ in range(30000)) + packer.flush()
    return png((30000, 30000), 1, rows)


def half_of_the_rows() -> bytes:
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(GRAY)[: GRAY.height // 2])
    return png(GRAY.size, 8, zlib.compress(rows))


def flipped(name: bytes, place: int) -> bytes:
    """A PNG with the byte changed that is so far from the name of a chunk."""
    data = bytearray(save(GRAY))
    data[data.index(name) + place] ^= 0xFF
    return bytes(data)


def animated() -> bytes:
    frames = [GRAY, GRAY.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    return save(frames[0], save_all=True, append_images=frames[1:])


def with_text(size: int) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * size, zip=True)
    return save(GRAY, pnginfo=info)


def photograph() -> Image.Image:
    return Image.fromarray(RNG.integers(0, 255, (12, 10, 3)).astype(np.uint8)).resize((200, 240))


JPEG = save(GRAY, "JPEG")
HALF_TRANSPARENT = Image.merge("LA", (GRAY, Image.new("L", GRAY.size, 128)))
REFUSED = {
    "empty_file": b"",
    "not_an_image": b"<html>not an image</html>",
    "not_an_image (GIF)": save(GRAY, "GIF"),
    "not_an_image (WebP)": save(GRAY.convert("RGB"), "WEBP"),
    "not_an_image (TIFF)": save(GRAY, "TIFF"),
    "not_an_image (SVG)": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "not_an_image (PDF)": b"%PDF-1.4\n",
    "truncated": JPEG[: len(JPEG) // 2],
    "truncated (PNG)": save(GRAY)[:900],
    "truncated (data of IDAT)": flipped(b"IDAT", 40),
    "truncated (checksum of IDAT)": flipped(b"IEND", -5),  # behind it the length of IEND
    "truncated (half of the rows)": half_of_the_rows(),
    "too_many_pixels": bomb(),
    "too_small": save(GRAY.resize((1, 1))),
    "too_small (20)": save(GRAY.resize((20, 20))),
    "odd_aspect": save(GRAY.resize((2000, 40))),
    "unsupported_mode": save(GRAY.convert("CMYK"), "JPEG"),
    "unsupported_mode (1 bit)": save(GRAY.convert("1")),
    "transparent": save(HALF_TRANSPARENT),
    "transparent (RGBA)": save(HALF_TRANSPARENT.convert("RGBA")),
    "transparent (a gray level)": save(GRAY, transparency=GRAY.getpixel((50, 50))),
    "transparent (a colour)": save(GRAY.convert("RGB"), transparency=(GRAY.getpixel((50, 50)),) * 3),
    "not_xray_like": save(photograph()),
    "not_xray_like (JPEG)": save(photograph(), "JPEG"),
    "no_information": save(Image.new("L", (100, 100), 0)),
    "no_information (white)": save(Image.new("L", (100, 100), 255)),
    "multi_frame": animated(),
    "oversized_metadata": with_text(70 * 2**20),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    with pytest.raises(ImageError) as caught:
        decode(REFUSED[case], 64)
    assert caught.value.code == case.split(" ")[0]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [16, 64])  # decoded at a half, and in full
@pytest.mark.parametrize("orientation", [1, 6])  # of EXIF: decoded by simplejpeg, and by Pillow
@pytest.mark.parametrize(
    "damage",
    [
        lambda half: half[0] + half[1][16:],
        lambda half: half[0] + b"\xff\xd9",
        lambda half: half[0] + bytes(len(half[1])),
    ],
    ids=["16 bytes cut out", "ended early", "zeroed tail"],
)
def test_a_jpeg_damaged_in_its_scan_is_refused(damage, orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(GRAY, "JPEG", exif=exif)
    assert decode(data, size).pixels.shape == (size, size)
    half = (data.index(b"\xff\xda") + len(data)) // 2
    with pytest.raises(ImageError) as caught:
        decode(damage((data[:half], data[half:])), size)
    assert caught.value.code == "truncated"


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_gray_in_any_clothes_gives_the_same_pixels(mode):
    assert np.abs(decode(save(GRAY.convert(mode)), 64).pixels.astype(int) - decode(save(GRAY), 64).pixels).max() <= 1


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_opaque_alpha_is_dropped(mode):
    np.testing.assert_allclose(decode(save(GRAY.convert(mode)), 64).pixels, decode(save(GRAY), 64).pixels, atol=1)


def test_the_name_of_the_file_does_not_matter(tmp_path):
    path = tmp_path / "really_a_jpeg.png"
    path.write_bytes(JPEG)
    assert decode(read_bytes(path), 64).mode == "L"


def test_facts_are_those_of_the_file():
    found = decode(save(GRAY), 64)
    assert isinstance(found, Decoded)
    assert (found.width, found.height, found.mode) == (100, 120, "L")
    assert found.pixels.shape == (64, 64)
    assert found.pixels.dtype == np.uint8
    assert len(found.dhash) == 64


@pytest.mark.parametrize(("bits", "top"), [(10, 1023), (12, 4095), (16, 65535)])
def test_sixteen_bit_files_are_scaled_by_the_depth_they_use(bits, top):
    values = np.linspace(0, top, 100 * 100).reshape(100, 100).astype(np.uint16)
    pixels = decode(save(Image.fromarray(values)), 100).pixels
    np.testing.assert_allclose(pixels, np.linspace(0, 255, 100 * 100).reshape(100, 100), atol=1.5)


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees
    stored = GRAY.transpose(Image.Transpose.ROTATE_90)
    turned = decode(save(stored, "JPEG", exif=exif, quality=95), 64).pixels
    np.testing.assert_allclose(turned.astype(int), decode(save(GRAY, "JPEG", quality=95), 64).pixels, atol=12)
    assert np.corrcoef(turned.ravel(), decode(save(GRAY, "JPEG"), 64).pixels.ravel())[0, 1] > 0.99


def test_large_jpegs_decoded_at_a_fraction_look_the_same():
    smooth = Image.fromarray(RNG.integers(0, 255, (20, 16)).astype(np.uint8)).resize(
        (1600, 2000), Image.Resampling.BICUBIC
    )
    fast = decode(save(smooth, "JPEG", quality=95), 64).pixels.astype(float)
    slow = np.asarray(smooth.resize((64, 64), Image.Resampling.BILINEAR), float)
    assert np.abs(fast - slow).mean() < 2


def test_resized_and_reencoded_twins_keep_their_hash():
    smooth = Image.fromarray(RNG.integers(0, 255, (12, 10)).astype(np.uint8)).resize(
        (500, 600), Image.Resampling.BICUBIC
    )
    twin = smooth.resize((224, 224)).convert("RGB")
    a, b = (int(decode(data, 64).dhash, 16) for data in (save(smooth), save(twin, "JPEG", quality=75)))
    assert (a ^ b).bit_count() <= 24


def test_pipes_and_folders_are_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for name, code in {"pipe.png": "not_a_file", "folder.png": "not_a_file", "loop.png": "unreadable"}.items():
        with pytest.raises(ImageError) as caught:
            read_bytes(tmp_path / name)
        assert caught.value.code == code


def test_the_originals_decode(real_xrays):
    files = sorted((real_xrays / "originals").rglob("*.jpeg"))[::16]
    for file in files:
        found = decode(read_bytes(file), 128)
        assert found.width > 224
        assert found.pixels.std() > 10
