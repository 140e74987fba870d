"""Adapts backbones of timm to one input channel and one logit."""

import re
from typing import Any

from torch import Tensor, nn

from xray_pneumonia.errors import InputError, nearest
from xray_pneumonia.models.layers import Pixels
from xray_pneumonia.types import BelowOne, Fraction, Positive, Text

NAME = re.compile(r"(\w+)(\.\w+)?", re.ASCII)  # a model, and which of its weights; no address, no folder


class TimmNet(nn.Module):
    """A backbone of timm with one input channel and one logit.

    Its keys stand in the file of the config group; `mean` and `std` are of the pixels in [0, 1].
    """

    def __init__(self, *, backbone: Text, pretrained: bool, dropout: BelowOne, mean: Fraction, std: Positive) -> None:
        super().__init__()
        self.pixels = Pixels(mean=mean, std=std)
        self.backbone = _load(backbone, pretrained=pretrained, in_chans=1, num_classes=1, drop_rate=dropout)

    def forward(self, image: Tensor) -> Tensor:
        """Map raw pixels (B, 1, H, W) to logits (B,) for PNEUMONIA."""
        return self.backbone(self.pixels(image))[:, 0]  # type: ignore[no-any-return]


def _load(backbone: str, *, pretrained: bool, **settings: Any) -> Any:
    try:
        import timm
    except ImportError as error:
        raise InputError(f"model=timm: {error.name} is not installed: pip install 'xray-pneumonia[timm]'") from error
    name = NAME.fullmatch(backbone)
    if name is None or not timm.is_model(name[1]):
        raise InputError(f"model.backbone={backbone}: no backbone of timm{nearest(backbone, timm.list_models())}")
    try:
        return timm.create_model(backbone, pretrained=pretrained, **settings)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        cure = "train from scratch with model.pretrained=false, or " if pretrained else ""
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"model.backbone={backbone}: cannot be made ({reason}); {cure}choose another") from error
