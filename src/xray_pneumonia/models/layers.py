"""The first layer of every net: raw gray pixels -> normalised numbers, on the device."""

import torch
from torch import Tensor, nn

FLAT = 1e-3  # added to the deviation, so that a film of one gray stays finite


class Pixels(nn.Module):
    """Scale uint8 pixels to [0, 1] and normalise them.

    Args:
        mean: subtracted after scaling.
        std: divides after that.
        per_image: standardise each image by its own mean and standard deviation as well.
    """

    def __init__(self, *, mean: float, std: float, per_image: bool = False) -> None:
        super().__init__()
        self._per_image = per_image
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self._anchor: Tensor
        self.register_buffer("_anchor", torch.empty(0), persistent=False)  # follows the net's dtype

    def forward(self, image: Tensor) -> Tensor:
        """Turn (B, 1, H, W) uint8, or floats of the same range, into floats."""
        pixels = image.to(self._anchor.dtype) * self._scale
        if self._per_image:
            centred = pixels - pixels.mean((2, 3), keepdim=True)
            return centred / (centred.square().mean((2, 3), keepdim=True).sqrt() + FLAT)  # type: ignore[no-any-return]
        return pixels + self._shift if self._shift else pixels


def takes(net: nn.Module, side: int) -> bool:
    """Tell whether a net takes images of `side` pixels: those that pool over the whole image take any."""
    training = net.training
    try:
        with torch.inference_mode():
            net.eval()(torch.zeros(1, 1, side, side, dtype=torch.uint8))
    except RuntimeError:  # the dense layer was made for another number of pixels
        return False
    finally:
        net.train(training)
    return True


def initialise_like_keras(net: nn.Module) -> None:
    """Glorot uniform weights and zero biases, Keras' defaults (Glorot and Bengio, AISTATS 2010)."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
