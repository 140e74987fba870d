"""What a JPEG file loses, without the file: all of it is lost where the coefficients are rounded (ITU-T T.81).

The entropy coding that follows is lossless, so nothing is written or read, and many images go through at once.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

SIDE = 8  # of a block
# T.81, table K.1: how coarsely the gray levels' frequencies are rounded at quality 50.
LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)


def steps_of(quality: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Scale the table to qualities (R,) from 1 to 100, as libjpeg does; (R, 8, 8)."""
    percent = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)[:, None, None]
    steps: npt.NDArray[np.float32] = np.clip((LUMINANCE * percent + 50) // 100, 1, 255).astype(np.float32)
    return steps


def compressed(images: Tensor, steps: Tensor) -> Tensor:
    """Round each frequency of each block of 8 x 8 pixels to a multiple of its step.

    Args:
        images: (R, 1, H, W) uint8.
        steps: (R, 8, 8) float, from `steps_of`.

    Returns:
        (R, 1, H, W) uint8.
    """
    height, width = images.shape[2:]
    whole = pad(images.float() - 128, [0, -width % SIDE, 0, -height % SIDE], mode="replicate")
    count, _, rows, columns = whole.shape
    blocks = whole.reshape(count, rows // SIDE, SIDE, columns // SIDE, SIDE).transpose(2, 3)
    cosines, steps = _cosines(images.device), steps[:, None, None]
    kept = (cosines @ blocks @ cosines.T / steps).round() * steps
    whole = (cosines.T @ kept @ cosines).transpose(2, 3).reshape(whole.shape)
    return (whole[:, :, :height, :width] + 128).round().clamp(0, 255).to(torch.uint8)


def _cosines(device: torch.device) -> Tensor:
    """Make the orthonormal DCT-II, (8, 8): frequencies down, places across."""
    place = torch.arange(SIDE, device=device)
    waves = torch.cos((2 * place + 1) * place[:, None] * (math.pi / (2 * SIDE))) / 2
    return torch.where(place[:, None] == 0, math.sqrt(1 / SIDE), waves)
