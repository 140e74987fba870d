"""Layers and functions that the nets share: normalisation of raw pixels, initial weights, memory layout."""

import logging

import torch
from torch import Tensor, nn

FLAT = 1e-3  # added to the deviation, so that an image of one gray stays finite
# With fewer channels, the CPU convolutions of torch 2.15 write beyond their buffers in this layout when the
# batch size changes between backward passes: widths 4 to 12 crash, 16 and more pass glibc's heap checks.
SAFE_CHANNELS = 16
log = logging.getLogger(__name__)


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
    """Tell whether a net takes images of `side` pixels; nets that pool over the whole image take any."""
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
    """Draw Glorot uniform weights and zero the biases, as Keras does (Glorot and Bengio, AISTATS 2010)."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def to_channels_last(net: nn.Module) -> nn.Module:
    """Store images and filters with the channels innermost, which convolutions read faster.

    Nets with narrow convolutions stay as they are: see `SAFE_CHANNELS`.
    """
    narrow = [name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d) and not _is_wide(layer)]
    if narrow:
        log.info("default memory layout: %s is too narrow for channels_last", narrow[0])
        return net
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _is_wide(layer: nn.Conv2d) -> bool:
    return layer.out_channels >= SAFE_CHANNELS and (layer.in_channels >= SAFE_CHANNELS or layer.in_channels == 1)
