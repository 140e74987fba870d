"""What comes after the net: its logits, calibrated; several nets that answer as one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Calibrated(nn.Module):
    """A net with its calibration.

    Args:
        net: raw pixels -> logits.
        temperature: divides the logits.
        bias: is added after that.
    """

    def __init__(self, net: nn.Module, *, temperature: float, bias: float) -> None:
        super().__init__()
        self.net, self.temperature, self.bias = net, temperature, bias

    def forward(self, image: Tensor) -> Tensor:
        """Map raw pixels (B, 1, H, W) to calibrated logits (B,), in double precision."""
        return self.net(image).double() / self.temperature + self.bias  # type: ignore[no-any-return]


class Mean(nn.Module):
    """The mean of several nets' logits.

    Args:
        nets: raw pixels -> calibrated logits.
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, image: Tensor) -> Tensor:
        """Map raw pixels (B, 1, H, W) to logits (B,)."""
        return torch.stack([net(image) for net in self.nets]).mean(dim=0)
