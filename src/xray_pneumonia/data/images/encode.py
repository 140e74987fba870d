"""Encode arrays of gray values as PNG, so that they pass the same decoder and checks as files."""

from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from xray_pneumonia.data.images.limits import ImageError


def encode(film: npt.NDArray[Any]) -> bytes:
    """Write an array (H, W) of gray values as PNG.

    Args:
        film: uint8, uint16, or floating numbers from 0 (black) to 1.

    Raises:
        ImageError: it is no such array.
    """
    pixels = np.asarray(film)
    if pixels.ndim != 2 or not pixels.size:
        raise ImageError("not_an_image", f"an array {pixels.shape}; give (H, W) gray values")
    if np.issubdtype(pixels.dtype, np.floating) and pixels.min() >= 0 and pixels.max() <= 1:  # false for NaN
        pixels = np.rint(pixels * 255).astype(np.uint8)
    if pixels.dtype not in (np.uint8, np.uint16):
        given = f"{pixels.dtype} values from {pixels.min()} to {pixels.max()}"
        raise ImageError("unsupported_mode", f"{given}; give uint8, uint16, or floating numbers from 0 to 1")
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
