"""CLAHE on many images at once (Zuiderveld, Graphics Gems IV, 1994), step by step as OpenCV does it."""

import torch
from torch import Tensor
from torch.nn.functional import pad

TILES = 8  # across and down
LEVELS = 256


def equalised(images: Tensor, limits: Tensor) -> Tensor:
    """Spread the gray levels of each tile, none further than its limit.

    Args:
        images: (R, 1, H, W) uint8, square.
        limits: (R,), how often a gray level may occur in a tile, as a multiple of the mean.

    Returns:
        (R, 1, H, W) uint8.
    """
    side = images.shape[-1]
    missing = -side % TILES
    whole = pad(images.float(), [0, missing, 0, missing], mode="reflect") if missing else images
    tile = whole.shape[-1] // TILES
    tiles = whole.long().reshape(len(images), TILES, tile, TILES, tile).transpose(2, 3).reshape(-1, tile * tile)
    counts = torch.zeros(len(tiles), LEVELS, dtype=torch.int64, device=images.device)
    counts.scatter_add_(1, tiles, torch.ones_like(tiles))
    most = (limits * (tile * tile / LEVELS)).floor().clamp(min=1).long().repeat_interleave(TILES * TILES)[:, None]
    summed = _clipped(counts, most).cumsum(1)
    tables = (summed * (255 / (tile * tile))).round().clamp(0, 255).reshape(len(images), -1)
    return _blended(images, tables, tile)


def _clipped(counts: Tensor, most: Tensor) -> Tensor:
    """Cut each histogram at `most` and deal what was cut out evenly, the rest of it at even distances."""
    excess = (counts - most).clamp(min=0).sum(1, keepdim=True)
    rest = excess % LEVELS
    distance = LEVELS // rest.clamp(min=1)
    level = torch.arange(LEVELS, device=counts.device)
    one_more = (level % distance == 0) & (level // distance < rest)
    return torch.minimum(counts, most) + excess // LEVELS + one_more


def _blended(images: Tensor, tables: Tensor, tile: int) -> Tensor:
    """Map each pixel by the tables of the four tiles around it, the nearer ones counting more."""
    side = images.shape[-1]
    place = torch.arange(side, device=images.device) / tile - 0.5
    first = place.floor()
    share = place - first
    tile_1, tile_2 = first.clamp(min=0).long(), (first + 1).clamp(max=TILES - 1).long()
    level = images[:, 0].long()

    def seen(row: Tensor, column: Tensor) -> Tensor:
        index = (row[:, None] * TILES + column) * LEVELS + level
        return tables.gather(1, index.flatten(1)).reshape(level.shape)

    upper = seen(tile_1, tile_1) * (1 - share) + seen(tile_1, tile_2) * share
    lower = seen(tile_2, tile_1) * (1 - share) + seen(tile_2, tile_2) * share
    down = share[:, None]
    return (upper * (1 - down) + lower * down).round().clamp(0, 255).to(torch.uint8)[:, None]
