"""Decode PNG, JPEG and DICOM files to gray uint8, for training and for prediction.

Pillow reads PNG and JPEG: OpenCV returns a full array for a truncated JPEG and shows 12-bit data almost black. Every
refusal is an `ImageError` with a short code.
"""

import hashlib
import os
import stat
from dataclasses import dataclass
from functools import reduce
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from xray_pneumonia.data.images.integrity import TORN, require_whole_jpeg, require_whole_png, tear, whole_jpeg
from xray_pneumonia.data.images.limits import (
    FAR,
    MAGIC,
    MAX_BYTES,
    MAX_COLOUR,
    OUTLIERS,
    PREAMBLE,
    DicomRules,
    ImageError,
    require_sane_sides,
)
from xray_pneumonia.types import Gray

FORMATS = ("PNG", "JPEG")
MAX_METADATA = 2**20  # bytes of EXIF
MIN_RANGE = 4  # gray levels between the darkest and the brightest pixel
HASH_SIDE = 16
ORIENTATION, TRANSPOSED = 0x0112, (5, 6, 7, 8)  # of EXIF, and its values that exchange rows and columns
DICOM_RULES = DicomRules()

Image.MAX_IMAGE_PIXELS = None  # our own limit is lower and is checked before any pixel is decoded


@dataclass(frozen=True)
class Decoded:
    """A decoded image: `pixels` (size, size) uint8; width, height and mode are those of the file."""

    pixels: Gray
    width: int
    height: int
    mode: str
    dhash: str  # 256 bits as 64 hex digits: is each pixel of a 16 x 17 thumbnail brighter than its left one?
    notes: tuple[str, ...] = ()  # "torn" and those of a DICOM file


def read_bytes(path: str | Path) -> bytes:
    """Read a regular file of sane size; pipes, devices and folders are refused, never waited for."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise ImageError("unreadable", f"cannot be opened: {error.strerror}") from error
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise ImageError("not_a_file", "is a folder, pipe or device, not a regular file")
        if facts.st_size > MAX_BYTES:
            raise ImageError("too_large", f"{facts.st_size} bytes; at most {MAX_BYTES} are read")
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def sha256(data: bytes) -> str:
    """Hash the bytes of a file, as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, size: int, *, rules: DicomRules = DICOM_RULES) -> Decoded:
    """Decode a PNG, JPEG or DICOM file to gray and squash it to `size` x `size`.

    The aspect ratio is given up on purpose: padding would tell the net the shape of the file, which
    alone predicts the label in this dataset. Large JPEGs are decoded at a fraction of their size by
    libjpeg itself, never below twice the target.

    Args:
        data: the bytes of a file.
        size: height and width of the result.
        rules: which DICOM files are read.

    Raises:
        ImageError: the file is empty, broken, no X-ray or beyond the limits above.
    """
    if not data:
        raise ImageError("empty_file", "has 0 bytes")
    if data[PREAMBLE : PREAMBLE + len(MAGIC)] == MAGIC:
        from xray_pneumonia.data.images.dicom import read_radiograph  # a second to import, and few data sets hold DICOM

        radiograph = read_radiograph(data, rules=rules)
        gray = Image.fromarray(radiograph.pixels)
        return _squashed(gray, size, mode=radiograph.photometric, notes=radiograph.notes)
    return _decode_picture(data, size)


def _decode_picture(data: bytes, size: int) -> Decoded:
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError("not_an_image", "its content is neither PNG nor JPEG nor DICOM") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged headers; each means the same here
        raise _broken(error) from error
    with image:
        _check_header(image)
        sides, mode = image.size, image.mode
        if image.format == "JPEG":
            image.draft("RGB" if mode == "RGB" else None, (2 * size, 2 * size))
        if image.format == "JPEG" and image.getexif().get(ORIENTATION, 1) == 1:
            whole = Image.fromarray(whole_jpeg(data, colour=mode == "RGB", sides=sides, scaled=image.size))
            return _squashed(_gray(whole), size, mode=mode, sides=sides)
        try:
            image.load()
        except MemoryError:
            raise
        except Exception as error:
            raise _broken(error) from error
        (require_whole_jpeg if image.format == "JPEG" else require_whole_png)(data)
        turned = image.getexif().get(ORIENTATION, 1) in TRANSPOSED
        return _squashed(_gray(_upright(image)), size, mode=mode, sides=sides, turned=turned)


def _squashed(
    gray: Image.Image,
    size: int,
    *,
    mode: str,
    sides: tuple[int, int] | None = None,
    notes: tuple[str, ...] = (),
    turned: bool = False,
) -> Decoded:
    """Squash a gray image.

    Args:
        gray: the image.
        size: height and width of the result.
        mode: the colour mode of the file.
        sides: of the file, where it was not decoded in full.
        notes: on its decoding.
        turned: its rows are the columns of the file.
    """
    width, height = sides or gray.size
    raster = np.asarray(gray)
    if tear(raster.T if turned else raster) > TORN:
        notes = (*notes, "torn")
    pixels = np.asarray(gray.resize((size, size), Image.Resampling.BILINEAR), np.uint8)
    if int(np.ptp(pixels)) <= MIN_RANGE:
        raise ImageError("no_information", f"all pixels lie within {MIN_RANGE} gray levels")
    return Decoded(pixels, width, height, mode, _dhash(gray), notes)


def _broken(error: Exception) -> ImageError:
    if "text" in str(error).lower() and isinstance(error, ValueError):
        return ImageError("oversized_metadata", f"its text is too large: {error}")
    return ImageError("truncated", f"is cut or damaged: {error}")


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION, 1) != 1 else image


def _check_header(image: Image.Image) -> None:
    """Refuse by the header alone, before any pixel is decoded."""
    require_sane_sides(*image.size)
    if getattr(image, "n_frames", 1) > 1:
        raise ImageError("multi_frame", "holds several pictures")
    if len(image.info.get("exif", b"")) > MAX_METADATA:
        raise ImageError("oversized_metadata", f"its EXIF exceeds {MAX_METADATA} bytes")
    if image.mode not in {"L", "RGB", "LA", "RGBA", "P", "I;16", "I"}:
        raise ImageError("unsupported_mode", f"colour mode {image.mode}; save it as 8- or 16-bit gray or RGB")


def _gray(image: Image.Image) -> Image.Image:
    """Turn every accepted mode into 8-bit gray."""
    if image.mode in {"I;16", "I"}:
        values = np.asarray(image, np.int64)
        _require_opaque(not (values == image.info.get("transparency", -1)).any())
        return _narrow(values)
    if image.mode in {"P", "L", "RGB"} and "transparency" in image.info:
        image = image.convert("LA" if image.mode == "L" else "RGBA")
    if image.mode == "P":
        image = image.convert("RGB")
    if image.mode in {"LA", "RGBA"}:
        _require_opaque(image.getchannel("A").getextrema() == (255, 255))
        image = image.convert(image.mode[:-1])
    if image.mode == "RGB":
        channels = np.moveaxis(np.asarray(image.resize((64, 64), Image.Resampling.NEAREST), np.int16), 2, 0)
        if float((reduce(np.maximum, channels) - reduce(np.minimum, channels)).mean()) > MAX_COLOUR:
            raise ImageError("not_xray_like", "is a colour picture; an X-ray has equal channels")
        image = image.convert("L")
    return image


def _require_opaque(opaque: bool) -> None:
    if not opaque:
        raise ImageError("transparent", "has transparent pixels; what lies behind them is unknown")


def _narrow(values: npt.NDArray[np.int64]) -> Image.Image:
    """Scale 16-bit values by the smallest usual depth (8, 10, 12, 14, 16 bits) that holds all but far outliers."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= 2**16:
        raise ImageError("unsupported_mode", f"values from {low} to {high}; 16 bits are read")
    most = float(np.percentile(values, 100 - OUTLIERS))
    top = 2 ** next(bits for bits in (8, 10, 12, 14, 16) if (high if high <= FAR * most else most) < 2**bits) - 1
    return Image.fromarray((np.minimum(values, top) * 255 // top).astype(np.uint8))


def _dhash(gray: Image.Image) -> str:
    """Difference hash: resizing and re-encoding change few of its bits."""
    small = np.asarray(gray.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()
