"""Shares layers and functions of the nets: raw pixels, initial weights, layout; refuses nets that give no logits."""

import itertools
import logging
import re
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from xray_pneumonia.errors import InputError

FLAT = 1e-3  # added to the deviation, so that an image of one gray stays finite
# With fewer channels, the CPU convolutions of torch 2.15 write beyond their buffers in this layout when the
# batch size changes between backward passes: widths 4 to 12 crash, 16 and more pass glibc's heap checks.
SAFE_CHANNELS = 16
OF_TYPE = re.compile(r"dtype|Byte|char|uint8|[Tt]ype")  # in what torch says of pixels that are no floats
# Steps of autograd that change no value.
VIEWS = re.compile("View|UnsafeView|Reshape|Squeeze|Unsqueeze|Select|Slice|Clone|Transpose")
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
    images = (torch.arange(2 * side * side) * 5 % 256).to(torch.uint8).reshape(2, 1, side, side)
    images[1] //= 4  # so that neither is like the other
    try:
        found = net(images)
        with torch.inference_mode():
            alone = [net(image[None]) for image in images]
    except Exception as error:  # whatever its code raises
        reason = " ".join(str(error).split())[:200]
        cure = "begin its forward with `image.float() / 255`" if OF_TYPE.search(reason) else "take this shape"
        cannot = f"cannot read raw pixels, uint8 (B, 1, {side}, {side})"
        raise InputError(f"model._target_={name}: {cannot}: {reason}; {cure}") from error
    two, one = "2 images, should give one logit each: (2,)", "one, should give (1,); write squeeze(1)"
    for made, count, given in ((found, 2, two), (alone[0], 1, one)):
        if not isinstance(made, Tensor) or made.shape != (count,):
            what = f"{tuple(made.shape)}" if isinstance(made, Tensor) else f"a {type(made).__name__}"
            raise InputError(f"model._target_={name}: gives {what} for {given}")
    _require_logit_of_image(found, torch.cat(alone), name=name)
    return net.train()


def _require_logit_of_image(found: Tensor, alone: Tensor, *, name: str) -> None:
    """Raise InputError unless these are logits, each of its image alone."""
    if not torch.allclose(found, alone, rtol=1e-2, atol=1e-4, equal_nan=True):
        raise InputError(
            f"model._target_={name}: gives an image {found[0]:.4g} beside another one and {alone[0]:.4g} alone; in "
            "evaluation let no logit depend on other images (batch norm with track_running_stats=True) or on chance "
            "(nn.Dropout, or self.training handed on)"
        )
    step = found.grad_fn
    while step is not None and VIEWS.match(step.name()):
        step = step.next_functions[0][0]
    if step is not None and "sigmoid" in step.name().casefold():
        raise InputError(f"model._target_={name}: gives probabilities, should give logits; leave out its last sigmoid")


def require_last_batch(net: nn.Module, images: int, batch_size: int, sides: list[int]) -> None:
    """Refuse a batch of one image where batch normalisation has a single value left, after hours perhaps.

    Raises:
        InputError: the last batch is one.
    """
    if (images - 1) % batch_size:
        return
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            deepcopy(net).train()(torch.zeros(1, 1, sides[0], sides[0], dtype=torch.uint8))
    except ValueError as error:
        better = next(size for size in itertools.count(batch_size + 1) if (images - 1) % size)
        raise InputError(
            f"data.batch_size={batch_size}: leaves one of {images} training images for the last batch, which this net "
            f"cannot normalise at {sides[0]} pixels; set data.batch_size={better}"
        ) from error


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
