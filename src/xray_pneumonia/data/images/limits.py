"""Define the limits of image files, whatever their format, and the error that refuses a file."""

from dataclasses import dataclass

DECODER_VERSION = 3  # part of the cache's key: raise it whenever the same file gives other pixels
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 40_000_000
MIN_SIDE = 32  # pixels
MAX_ASPECT = 4.0
MAX_COLOUR = 8.0  # mean distance between the channels, in gray levels; JPEG noise stays below 2
OUTLIERS = 0.5  # per cent of the pixels, clipped at each end ...
FAR = 4.0  # ... where the whole range is more than so many times the range of the others
PREAMBLE, MAGIC = 128, b"DICM"  # the bytes before DICOM's prefix, and that (PS3.10, 7.1)


@dataclass(frozen=True, kw_only=True)
class DicomRules:
    """Which DICOM files are read.

    Args:
        modalities: of the tag Modality.
        views: words of ViewPosition; a file without that tag is read.
        body_parts: words that BodyPartExamined may contain; a file without that tag is read.
        any_preamble: read files whose first 128 bytes are neither zeros nor the start of a TIFF.
    """

    modalities: tuple[str, ...] = ("CR", "DX")
    views: tuple[str, ...] = ("AP", "PA")
    body_parts: tuple[str, ...] = ("CHEST", "THORAX", "TORAX", "LUNG")
    any_preamble: bool = False


class ImageError(ValueError):
    """A file that is not a usable X-ray; `code` is one short word, the message says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def require_sane_sides(width: int, height: int) -> None:
    """Refuse by the size that a header names, before any pixel is decoded.

    Raises:
        ImageError: too many pixels, too few, or a strip.
    """
    if width * height > MAX_PIXELS:
        raise ImageError("too_many_pixels", f"{width} x {height}; at most {MAX_PIXELS:,} pixels are decoded")
    if min(width, height) < MIN_SIDE:
        raise ImageError("too_small", f"{width} x {height}; each side needs {MIN_SIDE} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError("odd_aspect", f"{width} x {height}; the sides differ more than {MAX_ASPECT:g} times")
