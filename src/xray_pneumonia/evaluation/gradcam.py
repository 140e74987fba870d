"""Heat maps: where in the image the evidence for PNEUMONIA lies; the only place that touches a net.

Grad-CAM (Selvaraju et al., ICCV 2017) by captum, at the last layer that still has a place for things.
"""

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from captum.attr import LayerAttribution, LayerGradCam
from scipy.stats import spearmanr
from torch import Tensor, nn

Gray = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.float32]
BATCH = 64
RIM = 1 / 8  # of the side: what counts as border
UNIFORM = 1 - (1 - 2 * RIM) ** 2  # the share of the border in a map that is the same everywhere
MOST_ALIKE = 0.5  # a map that random weights draw as well says nothing about the model


def map_layer(net: nn.Module, image: Tensor) -> nn.Module | None:
    """Find the last layer, run once a pass, whose output (B, C, h, w) is a map; None in a net without one.

    Args:
        net: eats (B, 1, H, W).
        image: one batch to try it on.
    """
    seen: list[tuple[nn.Module, bool]] = []

    def look(layer: nn.Module, _: Any, output: Any) -> None:
        seen.append((layer, isinstance(output, Tensor) and output.dim() == 4 and output.shape[-1] > 1))

    inner = [layer for layer in net.modules() if layer is not net and any(True for _ in layer.parameters())]
    hooks = [layer.register_forward_hook(look) for layer in inner]
    try:
        with torch.no_grad():
            net(image)
    finally:
        for hook in hooks:
            hook.remove()
    once = [layer for layer, is_map in seen if is_map and sum(layer is other for other, _ in seen) == 1]
    return once[-1] if once else None


def grad_cam(net: nn.Module, images: Gray) -> Maps | None:
    """Map the evidence for PNEUMONIA in (N, H, W) images: (N, H, W), each from 0 to 1; None without a layer.

    A map is all zeros where nothing in the image speaks for PNEUMONIA.
    """
    net = net.eval()
    device = next(net.parameters()).device
    layer = map_layer(net, _batch(images[:1], device))
    if layer is None:
        return None
    made = []
    for start in range(0, len(images), BATCH):
        image = _batch(images[start : start + BATCH], device).requires_grad_()
        raw = LayerGradCam(net, layer).attribute(image, relu_attributions=True)
        full = LayerAttribution.interpolate(raw, image.shape[2:], interpolate_mode="bilinear")
        made.append(full.detach()[:, 0].float().cpu().numpy())
    maps = np.concatenate(made)
    return np.asarray(maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12), np.float32)


def border_attention(maps: Maps) -> float:
    """Give the share of all attention that lies within an eighth of the side from the edge; NaN without any.

    A map that is the same everywhere has a share of `UNIFORM`; a model that reads lungs stays well below.
    """
    height, width = maps.shape[1:]
    inside = np.zeros((height, width), bool)
    inside[round(height * RIM) : -round(height * RIM), round(width * RIM) : -round(width * RIM)] = True
    total = maps.sum(axis=(1, 2))
    known = maps[total > 0]
    return float(np.mean(known[:, ~inside].sum(axis=1) / total[total > 0])) if len(known) else np.nan


def likeness_to_random(net: nn.Module, images: Gray, *, seed: int, draws: int = 3) -> float:
    """Compare the maps with those of the same net with random weights (Adebayo et al., NeurIPS 2018).

    Returns:
        The mean rank correlation over images and draws; above `MOST_ALIKE` the maps do not depend on what
        was learned. NaN when no map can be compared: there is no layer, or no evidence in any image.
    """
    mine = grad_cam(net, images)
    if mine is None:
        return np.nan
    likeness = []
    for draw in range(draws):
        other = grad_cam(_randomised(net, seed + draw), images)
        pairs = zip(mine, other if other is not None else mine, strict=True)
        likeness += [_likeness(one, two) for one, two in pairs if np.ptp(one) > 0 and np.ptp(two) > 0]
    return float(np.mean(likeness)) if likeness else np.nan


def _likeness(one: npt.NDArray[np.float32], two: npt.NDArray[np.float32]) -> float:
    return float(spearmanr(one[::4, ::4].ravel(), two[::4, ::4].ravel()).statistic)


def _randomised(net: nn.Module, seed: int) -> nn.Module:
    """Copy a net, its weights drawn anew layer by layer; the state of torch's generator is left as it was."""
    other = copy.deepcopy(net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in other.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                layer.reset_parameters()
    return other


def _batch(images: Gray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images))[:, None].float().to(device)
