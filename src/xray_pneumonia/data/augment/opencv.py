"""Changes -> pixels, one image at a time, in OpenCV: what albumentations does, without its bookkeeping."""

import cv2
import numpy as np
import numpy.typing as npt

from xray_pneumonia.data.augment.parameters import Changes, shared_noise
from xray_pneumonia.types import Gray

BORDERS = {"replicate": 1, "constant": 0, "reflect": 4}  # OpenCV's codes, named as OpenCV names them
TILES = (8, 8)  # of CLAHE


class Changer:
    """Applies changes on the CPU; `border` fills the space beyond the picture."""

    def __init__(self, *, border: str) -> None:
        cv2.setNumThreads(0)  # an image is too small to share out, and torch has the cores
        self._border = BORDERS[border]
        self._noise = shared_noise(0)

    def __call__(self, images: Gray, changes: Changes) -> Gray:
        """Change (B, H, W) uint8 into a new array of the same shape; the order is that of `Changes`."""
        changed = np.empty_like(images)
        for row, image in enumerate(images):
            out = changed[row]
            if changes.matrix is not None:
                side = (image.shape[1], image.shape[0])
                image = cv2.warpAffine(image, changes.matrix[row], side, dst=out, borderMode=self._border)
            if changes.table is not None:
                image = cv2.LUT(image, changes.table[row], dst=out)
            image = self._seldom(image, changes, row)
            if changes.noise[row] > 0:
                image = self._noisy(image, changes.noise[row], changes.noise_from[row])
            if changes.quality[row]:
                _, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, int(changes.quality[row])))
                image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
            if image is not out:
                out[:] = image
        for row, box in np.argwhere(changes.boxes[:, :, 1] > changes.boxes[:, :, 0]):
            top, bottom, left, right = changes.boxes[row, box]
            changed[row, top:bottom, left:right] = 0
        return changed

    def _seldom(self, image: Gray, changes: Changes, row: int) -> Gray:
        if changes.clip_limit[row]:
            image = cv2.createCLAHE(clipLimit=changes.clip_limit[row], tileGridSize=TILES).apply(image)
        if changes.sharpness[row]:
            image = cv2.filter2D(image, -1, sharpener(changes.sharpness[row]))
        if changes.shrunk[row]:
            scale, side = changes.shrunk[row], (image.shape[1], image.shape[0])
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
            image = cv2.resize(image, side, interpolation=cv2.INTER_NEAREST)
        if changes.blur[row]:
            kernel = gaussian(changes.blur[row])
            image = cv2.sepFilter2D(image, -1, kernel, kernel)
        return image

    def _noisy(self, image: Gray, deviation: float, start: int) -> Gray:
        if len(self._noise) < start + image.size:
            self._noise = shared_noise(image.size)
        noise = self._noise[start : start + image.size].reshape(image.shape)
        return cv2.addWeighted(image, 1, noise, deviation, 0, dtype=cv2.CV_8U)  # type: ignore[no-any-return]


def shrunk(images: Gray, side: int) -> Gray:
    """Average (B, H, W) over areas to (B, side, side); images of that side stay as they are."""
    if images.shape[1] == side:
        return images
    return np.stack([cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images])


def sharpener(strength: float) -> npt.NDArray[np.float32]:
    """Blend doing nothing with a 3 x 3 Laplacian added to the image."""
    kernel = np.full((3, 3), -strength, np.float32)
    kernel[1, 1] = 1 + 8 * strength
    return kernel


def gaussian(deviation: float) -> npt.NDArray[np.float32]:
    """Make a kernel that reaches 3.5 standard deviations to either side, as Pillow's does."""
    reach = int(deviation * 3.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    kernel: npt.NDArray[np.float32] = (weights / weights.sum()).astype(np.float32)
    return kernel
