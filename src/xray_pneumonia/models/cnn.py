"""Defines the convolutional net of the original notebook, with the hyperparameters that its grid search varied."""

from typing import Literal

from torch import Tensor, nn

from xray_pneumonia.errors import InputError
from xray_pneumonia.models.layers import Pixels, initialise_like_keras
from xray_pneumonia.types import BelowOne, Count, Fraction, Positive, Side

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
POOLS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


class CNN(nn.Module):
    """Blocks of convolution 3 x 3 (valid), activation and pooling by 2, then two dense layers.

    Where pooling takes the maximum, the activation comes after it: for a monotone activation that is
    the same function, bit for bit, at a quarter of the work.

    Its keys stand in the file of the config group; `mean` and `std` are of the pixels in [0, 1].
    """

    def __init__(
        self,
        *,
        image_size: Side,
        filters: list[Count],
        activations: list[Literal["relu", "tanh", "sigmoid"]],
        pool: Literal["max", "average"],
        dense: Count,
        dropout: BelowOne,
        mean: Fraction,
        std: Positive,
    ) -> None:
        super().__init__()
        if not filters or len(filters) != len(activations):
            raise InputError(f"model.activations={activations}: needs one for each of model.filters={filters}")
        side = image_size
        self.pixels = Pixels(mean=mean, std=std)
        self.blocks = nn.Sequential()
        for channels_in, channels_out, activation in zip([1, *filters[:-1]], filters, activations, strict=True):
            self.blocks.append(_block(channels_in, channels_out, activation, pool))
            side = (side - 2) // 2
        if side < 1:
            raise InputError(
                f"model.filters={filters}: {len(filters)} blocks leave nothing of data.image_size={image_size}"
            )
        self.head = nn.Sequential(
            nn.Flatten(),  # (B, C * h * w)
            nn.Linear(filters[-1] * side * side, dense),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(dense, 1),
        )
        initialise_like_keras(self)

    def forward(self, image: Tensor) -> Tensor:
        """Map raw pixels (B, 1, H, W) to logits (B,) for PNEUMONIA."""
        return self.head(self.blocks(self.pixels(image)))[:, 0]  # type: ignore[no-any-return]


def _block(channels_in: int, channels_out: int, activation: str, pool: str) -> nn.Sequential:
    last = [ACTIVATIONS[activation](), POOLS[pool](2)]
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 3), *(last[::-1] if pool == "max" else last))
