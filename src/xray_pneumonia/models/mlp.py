"""Defines the baseline of the original notebook, a fully connected net."""

from torch import Tensor, nn

from xray_pneumonia.models.layers import Pixels, initialise_like_keras
from xray_pneumonia.types import BelowOne, Count, Fraction, Positive, Side


class MLP(nn.Module):
    """Flatten, one hidden layer with ReLU, one logit.

    Its keys stand in the file of the config group; `mean` and `std` are of the pixels in [0, 1].
    """

    def __init__(self, *, image_size: Side, hidden: Count, dropout: BelowOne, mean: Fraction, std: Positive) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Pixels(mean=mean, std=std),
            nn.Flatten(),  # (B, H * W)
            nn.Linear(image_size * image_size, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, 1),
        )
        initialise_like_keras(self)

    def forward(self, image: Tensor) -> Tensor:
        """Map raw pixels (B, 1, H, W) to logits (B,) for PNEUMONIA."""
        return self.layers(image)[:, 0]  # type: ignore[no-any-return]
