"""Draws heat maps: where in the image the evidence for PNEUMONIA lies; the only module of `evaluation` with torch.

Grad-CAM (Selvaraju et al., ICCV 2017) by captum, at the last layer whose output is still a map of the image.
"""

import base64
import copy
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from xray_pneumonia.net_lock import lock_of
from xray_pneumonia.types import Gray

Maps = npt.NDArray[np.float32]
Net = nn.Module
BATCH = 64
RIM = 1 / 8  # of the side: what counts as border
UNIFORM = 1 - (1 - 2 * RIM) ** 2  # the share of the border in a map that is the same everywhere
MOST_ALIKE = 0.5  # rank correlation from which on a map says nothing about what the model learned
MEASURED = 200  # images whose maps are measured
CASES = {
    "found": "positive, called so",
    "cleared": "negative, called so",
    "missed": "positive, called negative",
    "alarmed": "negative, called positive",
    "unsure": "closest to the operating point",
}
OVERLAY_SIDE = 320  # pixels of an overlay's longer side
STRENGTH = 0.6  # of the heat over the image
# Dark red to yellow: told apart from gray, and in the order of brightness by the colour-blind as well.
RAMP = np.array([[70, 10, 30], [190, 35, 40], [240, 120, 40], [255, 225, 110]], np.float64)


@dataclass(frozen=True)
class Explanation:
    """Heat maps of chosen cases, and what was measured of the maps.

    `facts` holds `border` (share of the attention on the border), `measured` (maps with any attention), `likeness` (to
    the maps of random weights), `bound` (how much of that is allowed) and, where no map is shown, the reason as `none`.
    `cases` (N rows), `images` and `maps` (N, H, W) are empty then.
    """

    facts: dict[str, float | str] = field(default_factory=dict)
    cases: pd.DataFrame = field(default_factory=pd.DataFrame)
    images: Gray = field(default_factory=lambda: np.empty((0, 0, 0), np.uint8))
    maps: Maps = field(default_factory=lambda: np.empty((0, 0, 0), np.float32))


def explain(
    net: nn.Module, table: pd.DataFrame, images: Gray, *, threshold: float, each: int, seed: int
) -> Explanation:
    """Draw heat maps of fixed cases, and check the maps: attention on the border, likeness to random weights.

    Args:
        net: (B, 1, H, W) -> logits.
        table: calibrated predictions of the images (N, H, W).
        images: uint8.
        threshold: the operating point.
        each: cases of each kind.
        seed: of the random weights.
    """
    cases = choose_cases(table.reset_index(drop=True), threshold=threshold, each=each)
    shown = images[cases.index.to_numpy(np.int64)]
    maps = grad_cam(net, shown)
    rows = np.linspace(0, len(images) - 1, min(MEASURED, len(images))).astype(int)
    measured = grad_cam(net, images[rows])
    if maps is None or measured is None:
        reason = "the net has no layer whose output is a map of the image, so there is nothing to show"
        return Explanation({"none": reason})
    likeness = likeness_to_random(net, shown, seed=seed)
    facts: dict[str, float | str] = {
        "border": border_attention(measured),
        "measured": int(measured.any(axis=(1, 2)).sum()),
        "likeness": likeness,
        "bound": MOST_ALIKE,
    }
    if np.isnan(likeness):
        facts["none"] = (
            "the maps are withheld: nothing in these films speaks for the positive class to this model, or to nets "
            "with random weights, so there is nothing to compare"
        )
    elif likeness > MOST_ALIKE:
        facts["none"] = (
            f"the maps are withheld: nets with random weights draw much the same (rank correlation {likeness:.2f}, at "
            f"most {MOST_ALIKE:g} is allowed), so they do not show what this model has learned"
        )
    return Explanation(facts) if "none" in facts else Explanation(facts, cases, shown, maps)


def choose_cases(table: pd.DataFrame, *, threshold: float, each: int) -> pd.DataFrame:
    """Choose up to `each` cases of each kind in `CASES`, the most certain ones, one a patient, ties broken by id.

    Returns:
        The chosen rows of the calibrated predictions with a column `case`; no row twice.
    """
    called = table["probability"] >= threshold
    ill = table["label"] == 1
    distance = (table["probability"] - threshold).abs()
    groups = {"found": ill & called, "cleared": ~ill & ~called, "missed": ill & ~called, "alarmed": ~ill & called}
    ranked = table.assign(distance=distance).sort_values(["distance", "id"], ascending=[False, True])
    chosen = [
        ranked[mask.loc[ranked.index]].drop_duplicates("patient").head(each).assign(case=name)
        for name, mask in groups.items()
    ]
    taken = pd.concat(chosen).index
    unsure = ranked.drop(taken).sort_values(["distance", "id"]).drop_duplicates("patient").head(each)
    return pd.concat([*chosen, unsure.assign(case="unsure")]).drop(columns="distance")


def map_layer(net: nn.Module, image: Tensor) -> nn.Module | None:
    """Find the last layer, run once a pass, whose output (B, C, h, w) is a map of `image` (B, 1, H, W); else None."""
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
    from captum.attr import LayerAttribution, LayerGradCam  # most of a second to import

    net = net.eval()
    device = next(net.parameters()).device
    with lock_of(net):
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
    """Compute the share of all attention that lies within an eighth of the side from the edge; NaN without any.

    A map that is the same everywhere has a share of `UNIFORM`; a model that looks at lungs stays well below.
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
        likeness += [_rank_correlation(one, two) for one, two in pairs if np.ptp(one) > 0 and np.ptp(two) > 0]
    return float(np.mean(likeness)) if likeness else np.nan


def _rank_correlation(one: Maps, two: Maps) -> float:
    from scipy.stats import spearmanr  # half a second to import

    return float(spearmanr(one[::4, ::4].ravel(), two[::4, ::4].ravel()).statistic)


def _randomised(net: nn.Module, seed: int) -> nn.Module:
    """Copy a net with weights drawn anew layer by layer; the state of torch's generator is left as it was."""
    other = copy.deepcopy(net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in other.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                layer.reset_parameters()
    return other


def _batch(images: Gray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(images))[:, None].float().to(device)


def overlay(image: Gray, heat: Maps, *, width: int, height: int) -> Image.Image:
    """Lay a heat map (H, W), from 0 to 1, over an image (H, W), in the shape of its file (pixels)."""
    colour = _coloured(heat)
    share = (STRENGTH * np.clip(heat, 0, 1))[..., None]
    mixed = image[..., None] * (1 - share) + colour * share
    scale = OVERLAY_SIDE / max(width, height)
    sides = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(np.rint(mixed).astype(np.uint8)).resize(sides, Image.Resampling.BICUBIC)


def _coloured(heat: Maps) -> npt.NDArray[np.float64]:
    place = np.clip(heat, 0, 1) * (len(RAMP) - 1)
    below = np.minimum(place.astype(int), len(RAMP) - 2)
    rest = (place - below)[..., None]
    return np.asarray(RAMP[below] * (1 - rest) + RAMP[below + 1] * rest)


def layer(heat: Maps) -> Gray:
    """Colour a heat map (H, W), from 0 to 1, as a layer (H, W, 4) whose opacity is the heat."""
    opacity = 255 * np.clip(heat, 0, 1)[..., None]
    return np.asarray(np.rint(np.concatenate([_coloured(heat), opacity], axis=2)), np.uint8)


def thumbnail(image: Image.Image | Gray, *, side: int) -> str:
    """Shrink an image to at most `side` pixels and write it as a data URI; nothing but its pixels gets in."""
    small = image.copy() if isinstance(image, Image.Image) else Image.fromarray(image)
    small.thumbnail((side, side))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def read_overlay(path: Path) -> Image.Image:
    """Read the PNG of an overlay."""
    with Image.open(path, formats=("PNG",)) as image:
        return image.convert("RGB")
