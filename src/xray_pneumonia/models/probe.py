"""Defines a new last layer, linear in the channel means of all blocks of a frozen net, for another hospital."""

from typing import Any

from torch import Tensor, nn

from xray_pneumonia.models.features import FeatureNet
from xray_pneumonia.types import Count, Side


class Probe(nn.Module):
    """A new last layer on the features of stem and all blocks (Head2Toe: Evci et al., ICML 2022).

    On films of another hospital early blocks may still tell the classes apart where the last one does not.

    Args:
        net: raw pixels (B, 1, S, S) -> logits, whose blocks are read.
        features: their number, D.
        image_size: S.
    """

    def __init__(self, *, net: Any, features: Count, image_size: Side) -> None:
        super().__init__()
        self.body = FeatureNet(net, side=image_size)
        self.last = nn.Linear(features, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map raw pixels (B, 1, S, S) to logits (B,) for PNEUMONIA."""
        return self.last(self.body(image)[1])[:, 0]  # type: ignore[no-any-return]
