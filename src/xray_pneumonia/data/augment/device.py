"""Changes -> pixels, a whole batch at a time, on the device where the net is: in torch, what OpenCV does one by one.

Which images a change concerns is known on the host before they are touched, so nothing here waits for the device.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, conv2d, grid_sample, pad

from xray_pneumonia.data.augment.clahe import equalised
from xray_pneumonia.data.augment.jpeg import compressed, steps_of
from xray_pneumonia.data.augment.opencv import gaussian
from xray_pneumonia.data.augment.parameters import BLUR, NOISE, Changes, Floats, shared_noise

BORDERS = {"replicate": "border", "constant": "zeros", "reflect": "reflection"}  # torch's names, by OpenCV's
REACH = int(3.5 * BLUR[1])  # of the widest blur, in pixels to either side

Packed = dict[str, tuple[Tensor, ...]]  # change -> the rows it concerns (R,), and its numbers (R, ...)


def pack(changes: Changes, *, side: int) -> Packed:
    """Bring the changes of B images of `side` pixels into the form that travels to the device.

    A change that concerns no image is left out.
    """
    return {
        name: tuple(torch.from_numpy(np.ascontiguousarray(each)) for each in (rows, *(n[rows] for n in numbers)))
        for name, concerned, *numbers in _numbers(changes, side)
        if len(rows := np.flatnonzero(concerned))
    }


def _numbers(changes: Changes, side: int) -> Iterator[tuple[str, np.ndarray, *tuple[np.ndarray, ...]]]:
    """Yield each change with what is not 0 where it happens, and the numbers that it takes."""
    everybody = np.ones(len(changes.noise))
    if changes.matrix is not None:
        yield "warped", everybody, _backwards(changes.matrix, side)
    if changes.table is not None:
        yield "mapped", everybody, changes.table
    yield "equalised", changes.clip_limit, changes.clip_limit
    yield "sharpened", changes.sharpness, changes.sharpness.astype(np.float32)
    yield "shrunk", changes.shrunk, _nearest(changes.shrunk, side)
    yield "blurred", changes.blur, np.stack([_kernel(each) for each in changes.blur])
    yield "noisy", changes.noise, changes.noise.astype(np.float32), changes.noise_from
    yield "compressed", changes.quality, steps_of(np.maximum(changes.quality, 1))
    yield "erased", (changes.boxes[:, :, 1] - changes.boxes[:, :, 0]).sum(1), changes.boxes


class DeviceChanger:
    """Applies packed changes where the images are; `border` fills the space beyond the picture."""

    def __init__(self, *, border: str) -> None:
        self._padding = BORDERS[border]
        self._noise = torch.empty(0)

    @torch.no_grad()
    def __call__(self, images: Tensor, packed: Packed) -> Tensor:
        """Change (B, 1, H, W) uint8 into a new tensor of the same shape; the order is that of `Changes`."""
        steps: dict[str, Callable[..., Tensor]] = {
            "warped": self._warped,
            "mapped": _mapped,
            "equalised": equalised,
            "sharpened": _sharpened,
            "shrunk": _shrunk,
            "blurred": _blurred,
            "noisy": self._noisy,
            "compressed": compressed,
            "erased": _erased,
        }
        for name, change in steps.items():
            if name in packed:
                rows, *numbers = packed[name]
                if len(rows) == len(images):
                    images = change(images, *numbers)
                else:
                    images = images.index_copy(0, rows, change(images.index_select(0, rows), *numbers))
        return images

    def _warped(self, images: Tensor, backwards: Tensor) -> Tensor:
        grid = affine_grid(backwards, list(images.shape), align_corners=True)
        return _rounded(
            grid_sample(images.float(), grid, mode="bilinear", padding_mode=self._padding, align_corners=True)
        )

    def _noisy(self, images: Tensor, deviation: Tensor, start: Tensor) -> Tensor:
        pixels = images[0].numel()
        if len(self._noise) != NOISE + pixels or self._noise.device != images.device:
            self._noise = torch.from_numpy(shared_noise(pixels)).to(images.device)
        noise = self._noise.unfold(0, pixels, 1).index_select(0, start)  # (R, H W)
        return _rounded(images + deviation[:, None, None, None] * noise.reshape(images.shape))


def _backwards(matrix: Floats, side: int) -> npt.NDArray[np.float32]:
    """Turn (B, 2, 3), old to new pixels, into new to old places between -1 and 1, the centres of the outer pixels."""
    turn = np.linalg.inv(matrix[:, :, :2])
    shift = -(turn @ matrix[:, :, 2:])
    shift = turn.sum(2, keepdims=True) + 2 * shift / (side - 1) - 1
    return np.concatenate([turn, shift], axis=2).astype(np.float32)


def _nearest(scale: Floats, side: int) -> npt.NDArray[np.int64]:
    """Tell which old pixel each of `side` pixels shows after shrinking to `scale` and enlarging again; (B, side)."""
    scale = np.where(scale, scale, 1)[:, None]
    small = np.rint(side * scale)
    between = np.floor(np.arange(side) * (1 / (side / small)))
    return np.minimum(np.floor(between * (1 / scale)), side - 1).astype(np.int64)


def _kernel(deviation: float) -> npt.NDArray[np.float32]:
    """Make a Gaussian kernel of 2 REACH + 1 weights; one that leaves alone where the deviation is 0."""
    weights = gaussian(deviation) if deviation else np.ones(1, np.float32)
    return np.pad(weights, REACH - len(weights) // 2)


def _mapped(images: Tensor, table: Tensor) -> Tensor:
    return table.gather(1, images.flatten(1).long()).reshape(images.shape)


def _sharpened(images: Tensor, strength: Tensor) -> Tensor:
    pixels, strength = images.float(), strength[:, None, None, None]
    around = 9 * avg_pool2d(pad(pixels, [1] * 4, mode="reflect"), 3, stride=1)
    return _rounded(pixels * (1 + 9 * strength) - around * strength)


def _shrunk(images: Tensor, nearest: Tensor) -> Tensor:
    rows = images.gather(2, nearest[:, None, :, None].expand_as(images))
    return rows.gather(3, nearest[:, None, None, :].expand_as(images))


def _blurred(images: Tensor, kernels: Tensor) -> Tensor:
    pixels = pad(images.float(), [REACH] * 4, mode="reflect").transpose(0, 1)  # (1, R, H + 14, W + 14)
    across = kernels[:, None, None]  # (R, 1, 1, 15): each image has its own
    pixels = conv2d(conv2d(pixels, across, groups=len(images)), across.transpose(2, 3), groups=len(images))
    return _rounded(pixels.transpose(0, 1))


def _erased(images: Tensor, boxes: Tensor) -> Tensor:
    place = torch.arange(images.shape[-1], device=images.device)
    top, bottom, left, right = boxes[..., None].unbind(2)  # (R, 3, 1) each
    down, across = (place >= top) & (place < bottom), (place >= left) & (place < right)  # (R, 3, side)
    inside = (down[..., :, None] & across[..., None, :]).any(1, keepdim=True)
    return images.masked_fill(inside, 0)


def _rounded(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)
