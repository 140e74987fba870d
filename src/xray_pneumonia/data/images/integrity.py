"""Detect damage that decoders pass over in silence: broken compressed streams, rasters that are torn.

A decoder that meets damaged data often goes on: libjpeg warns and fills the rest, Pillow skips checksums of PNG
chunks, raw DICOM pixels have no check at all. Streams are therefore checked by themselves, and the decoded raster is
searched for the line at which data went missing, were zeroed or moved.
"""

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xray_pneumonia.data.images.limits import ImageError

Pixels = npt.NDArray[np.uint8]
CELLS = 64  # columns to which a row is averaged
CLIP = 40.0  # gray levels: a step counts no more than this
FLOOR = 0.7  # gray levels added to what a step is compared with, so that flat areas do not divide by zero
TORN = 2.7  # steps of so many times their surroundings are damage; see docs/reliability.md for the measurement
FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers SOF0 to SOF15 and SOF55 of JPEG-LS
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> samples per pixel (PNG 3rd edition, 11.2.1)
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def require_whole_jpeg(data: bytes) -> None:
    """Refuse a JPEG about whose data libjpeg has a warning.

    Args:
        data: the bytes of a JPEG, baseline or progressive, gray or YCbCr.

    Raises:
        ImageError: data are missing, follow where none belong, or are no valid Huffman codes.
    """
    import simplejpeg

    try:
        simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as error:
        raise ImageError("truncated", f"is cut or damaged: {str(error).removeprefix('Corrupt JPEG data: ')}") from None


def whole_jpeg(data: bytes, *, colour: bool, sides: tuple[int, int], scaled: tuple[int, int]) -> Pixels:
    """Decode a JPEG at a fraction of its size; the same pixels as Pillow's, in one pass with the check of its stream.

    Args:
        data: the bytes of a JPEG.
        colour: whether it has three components.
        sides: its width and height.
        scaled: the width and height that Pillow's `draft` chose.

    Returns:
        (H, W) or (H, W, 3).

    Raises:
        ImageError: data are missing, follow where none belong, or are no valid Huffman codes.
    """
    import simplejpeg

    kind, (width, height) = "RGB" if colour else "GRAY", scaled
    try:
        found = simplejpeg.decode_jpeg_header(data)[:2]
        if found != sides[::-1]:
            raise ValueError(f"two sizes, {sides[::-1]} and {found}")
        pixels: Pixels = simplejpeg.decode_jpeg(
            data, colorspace=kind, min_height=height, min_width=width, min_factor=1, strict=True
        )
    except ValueError as error:
        raise ImageError("truncated", f"is cut or damaged: {str(error).removeprefix('Corrupt JPEG data: ')}") from None
    return pixels if colour else pixels[..., 0]


@dataclass(frozen=True)
class JpegFrame:
    """The frame header of a JPEG, JPEG-LS or JPEG 2000: samples of `bits` bits, `components` a pixel (T.81, B.2.2)."""

    bits: int
    height: int
    width: int
    components: int
    signed: bool | None = None  # a JPEG 2000 says it


def jpeg_frame(data: bytes) -> JpegFrame:
    """Read the frame header of a JPEG or JPEG-LS.

    Raises:
        ImageError: there is none.
    """
    place = 2
    while data[place : place + 1] == b"\xff" and place + 10 <= len(data):
        marker = data[place + 1]
        if marker in FRAMES:
            return JpegFrame(*struct.unpack(">BHHB", data[place + 4 : place + 10]))
        place += 1 if marker == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    raise ImageError("truncated", "its JPEG has no frame header")


def jpeg2000_frame(data: bytes) -> JpegFrame:
    """Read the frame header of a JPEG 2000 (ITU-T T.800, A.5.1).

    Raises:
        ImageError: there is none.
    """
    place = data.find(b"\xff\x4f\xff\x51") + 8  # SOC, SIZ, length and capabilities
    if place < 8 or place + 35 > len(data):
        raise ImageError("truncated", "its JPEG 2000 has no frame header")
    right, bottom, left, top, *_, components, depth = struct.unpack(">8IHB", data[place : place + 35])
    return JpegFrame((depth & 0x7F) + 1, bottom - top, right - left, components, signed=depth > 0x7F)


def require_whole_png(data: bytes) -> None:
    """Refuse a PNG with a wrong checksum, without its end, or whose data are not as long as its header says.

    Args:
        data: the bytes of a PNG whose sides are within the limits.

    Raises:
        ImageError: with the chunk that is damaged.
    """
    place, compressed, header = len(PNG_SIGNATURE), [], b""
    while True:
        length, kind = struct.unpack(">I4s", data[place : place + 8].ljust(8, b"\0"))
        body = data[place + 8 : place + 8 + length]
        checksum = data[place + 8 + length : place + 12 + length]
        if len(checksum) < 4:
            raise ImageError("truncated", "is cut: its last chunk is missing")
        if zlib.crc32(kind + body) != int.from_bytes(checksum, "big"):
            raise ImageError("truncated", f"is damaged: wrong checksum of chunk {kind.decode('ascii', 'replace')!r}")
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            compressed.append(body)
        elif kind == b"IEND":
            break
        place += 12 + length
    expected = _png_bytes(header)
    found = _inflated_length(b"".join(compressed), most=expected)
    if found != expected:
        raise ImageError("truncated", f"is damaged: its pixels take {expected} bytes, {found} are there")


def _png_bytes(header: bytes) -> int:
    """Count the bytes of all rows, each with its filter byte (PNG 3rd edition, 7.2 and 8)."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * PNG_CHANNELS[colour]
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = ((-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes)
    return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)


def _inflated_length(compressed: bytes, *, most: int) -> int:
    """Inflate in pieces and count; stops soon after `most`, so that a bomb costs no memory."""
    stream, count = zlib.decompressobj(), 0
    try:
        while compressed and not stream.eof and count <= most:
            count += len(stream.decompress(compressed, 2**20))
            compressed = stream.unconsumed_tail
        return count + (0 if count > most else len(stream.flush()))
    except zlib.error as error:
        raise ImageError("truncated", f"is damaged: its data cannot be inflated ({error})") from None


def tear(gray: Pixels) -> float:
    """Measure the worst tear of a raster: a step in brightness along a whole row's length of consecutive pixels.

    Where pixels are lost, zeroed or moved, and where a wrong DC coefficient shifts all later blocks of a JPEG, what
    follows does not continue the row above. Such a step starts anywhere in a row and goes on to the same column of the
    next one, which no anatomy does. Each row is averaged to 64 cells; the step between two rows is taken against the
    steps of their neighbours, and its mean over one row's length of cells is divided by the same mean two rows above
    and below.

    Args:
        gray: (H, W), as decoded, before any resizing.

    Returns:
        The largest ratio: about 1.9 for a whole image, under 2.6 for 99 of 100; over `TORN` means damage.
    """
    height, width = gray.shape
    side = max(1, width // CELLS)
    columns = width // side
    if height < 8:
        return 0.0
    cells = gray[:, : columns * side].reshape(height, columns, side)
    total: npt.NDArray[np.uint32] = cells[..., 0].astype(np.uint32)
    for column in range(1, side):  # several times faster than a sum over so short an axis
        total += cells[..., column]
    means = total.astype(np.float32) / side
    steps = np.diff(means, axis=0)
    unlike = np.abs(steps[1:-1] - 0.5 * (steps[:-2] + steps[2:])).ravel()
    sums = np.concatenate([[0.0], np.cumsum(np.minimum(unlike, CLIP), dtype=np.float64)])
    rows = (sums[columns:] - sums[:-columns]) / columns
    around = np.maximum(rows[: -4 * columns], rows[4 * columns :])
    return float((rows[2 * columns : -2 * columns] / (around + FLOOR)).max(initial=0.0))
