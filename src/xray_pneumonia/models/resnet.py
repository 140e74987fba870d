"""Defines a small residual net with global pooling: few parameters, any image size."""

from torch import Tensor, nn

from xray_pneumonia.models.layers import Pixels
from xray_pneumonia.types import BelowOne, Count, Fraction, Positive, Stages


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut (He et al., CVPR 2016)."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        nn.init.zeros_(self.body[-1].weight)  # type: ignore[arg-type]
        # starts as the identity (Goyal et al., arXiv 1706.02677)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels_in == channels_out
            else nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )
        )
        self.activation = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H / stride, W / stride)."""
        return self.activation(self.body(features) + self.shortcut(features))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A strided stem, stages of residual blocks that halve the side and double the width, one logit.

    Its keys stand in the file of the config group; `mean` and `std` are of the pixels in [0, 1].
    """

    def __init__(
        self,
        *,
        width: Count,
        depth: Count,
        stages: Stages,
        dropout: BelowOne,
        mean: Fraction,
        std: Positive,
        per_image: bool,
    ) -> None:
        super().__init__()
        self.pixels = Pixels(mean=mean, std=std, per_image=per_image)
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        widths = [width * 2**stage for stage in range(stages)]
        self.stages = nn.Sequential()
        for channels_in, channels_out in zip([width, *widths[:-1]], widths, strict=True):
            self.stages.append(ResidualBlock(channels_in, channels_out, stride=2))
            for _ in range(depth - 1):
                self.stages.append(ResidualBlock(channels_out, channels_out, stride=1))
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(widths[-1], 1)
        )  # (B, C, h, w) -> (B, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map raw pixels (B, 1, H, W) to logits (B,) for PNEUMONIA."""
        return self.head(self.stages(self.stem(self.pixels(image))))[:, 0]  # type: ignore[no-any-return]
