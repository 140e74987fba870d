"""Small pictures: films as their thumbnails, heat maps laid over films. Nothing of the file but pixels gets in."""

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Gray = npt.NDArray[np.uint8]
Heat = npt.NDArray[np.float32]
SIDE = 320  # pixels of an overlay's longer side
STRENGTH = 0.6  # of the heat over the film
# Dark red to yellow: told apart from gray, and in the order of brightness by the colour-blind as well.
RAMP = np.array([[70, 10, 30], [190, 35, 40], [240, 120, 40], [255, 225, 110]], np.float64)


def overlay(film: Gray, heat: Heat, *, width: int, height: int) -> Image.Image:
    """Lay a heat map over a film.

    Args:
        film: (H, W) as the model sees it.
        heat: (H, W) from 0 to 1.
        width: of the file, in pixels, for its shape.
        height: of the file.
    """
    place = np.clip(heat, 0, 1) * (len(RAMP) - 1)
    below = np.minimum(place.astype(int), len(RAMP) - 2)
    rest = (place - below)[..., None]
    colour = RAMP[below] * (1 - rest) + RAMP[below + 1] * rest
    share = (STRENGTH * np.clip(heat, 0, 1))[..., None]
    mixed = film[..., None] * (1 - share) + colour * share
    scale = SIDE / max(width, height)
    sides = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(np.rint(mixed).astype(np.uint8)).resize(sides, Image.Resampling.BICUBIC)


def thumbnail(picture: Image.Image | Gray, *, side: int) -> str:
    """Shrink a picture to at most `side` pixels and write it as a data URI."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image = image.copy()
    image.thumbnail((side, side))
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def read_overlay(path: Path) -> Image.Image:
    """Read back what was saved."""
    with Image.open(path, formats=("PNG",)) as image:
        return image.convert("RGB")
