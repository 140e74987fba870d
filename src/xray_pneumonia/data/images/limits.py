"""Define the limits of image files, whatever their format, and the error that refuses a file."""

MAX_BYTES = 256 * 2**20
MAX_PIXELS = 40_000_000
MIN_SIDE = 32  # pixels
MAX_ASPECT = 4.0
MODALITIES = ("CR", "DX")  # of DICOM, for training; `xray predict` has a key
PREAMBLE, MAGIC = 128, b"DICM"  # the bytes before DICOM's prefix, and that (PS3.10, 7.1)


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
