"""Layers and functions that the nets share: normalisation of raw pixels, initial weights, memory layout."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from xray_pneumonia.errors import InputError

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
    except (RuntimeError, AssertionError):  # the dense layer was made for another number of pixels
        return False
    finally:
        net.train(training)
    return True


def as_logits(net: nn.Module) -> nn.Module:
    """Have a net that returns logits (B, 1) return (B,); its weights keep their names."""
    net.register_forward_hook(_squeezed)
    return net


def _squeezed(_: nn.Module, __: Any, output: Any) -> Any:
    return output[:, 0] if isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] == 1 else output


def require_logits(net: Any, side: int, *, name: str) -> nn.Module:
    """Raise InputError unless code of others is a net: raw pixels (B, 1, H, W) -> logits (B,) or (B, 1); give (B,)."""
    if not isinstance(net, nn.Module):
        raise InputError(f"model._target_={name}: makes a {type(net).__name__}, should make a torch.nn.Module")
    as_logits(net).eval()
    try:
        with torch.inference_mode():
            found = net(torch.zeros(2, 1, side, side, dtype=torch.uint8))
    except Exception as error:  # whatever its code raises
        raise InputError(
            f"model._target_={name}: cannot read raw pixels, uint8 (B, 1, {side}, {side}): "
            f"{' '.join(str(error).split())[:200]}; begin its forward with `image.float() / 255`"
        ) from error
    if not isinstance(found, Tensor) or found.shape != (2,):
        what = f"{tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise InputError(f"model._target_={name}: gives {what} for 2 images, should give one logit each: (2,)")
    return net.train()


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
