"""Adapts backbones of torchvision to one input channel and one logit."""

import re
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision import models

from xray_pneumonia.errors import InputError, nearest
from xray_pneumonia.models.layers import Pixels
from xray_pneumonia.types import BelowOne, Fraction, Positive, Text

UNFIT = ("googlenet", "inception", "maxvit", "squeezenet", "vit")  # other outputs, no dense head, one image size


class TorchvisionNet(nn.Module):
    """A backbone of torchvision with one input channel and one logit.

    With pretrained weights the stem sums the weights of the three colour channels, so that it sees a
    gray image just as the pretrained net saw the same image in RGB.

    Its keys stand in the file of the config group; `mean` and `std` are of the pixels in [0, 1].
    """

    def __init__(
        self,
        *,
        backbone: Text,
        pretrained: bool,
        dropout: BelowOne,
        mean: Fraction,
        std: Positive,
    ) -> None:
        super().__init__()
        self.pixels = Pixels(mean=mean, std=std)
        self.backbone = _load(backbone, pretrained=pretrained)
        name, stem = next((key, layer) for key, layer in self.backbone.named_modules() if isinstance(layer, nn.Conv2d))
        self.backbone.set_submodule(name, _one_channel(stem))
        linear = [(name, layer) for name, layer in self.backbone.named_modules() if isinstance(layer, nn.Linear)]
        name, head = linear[-1]
        self.backbone.set_submodule(name, nn.Sequential(nn.Dropout(dropout), nn.Linear(head.in_features, 1)))

    def forward(self, image: Tensor) -> Tensor:
        """Map raw pixels (B, 1, H, W) to logits (B,) for PNEUMONIA."""
        return self.backbone(self.pixels(image))[:, 0]  # type: ignore[no-any-return]


def _load(backbone: str, *, pretrained: bool) -> nn.Module:
    known = [name for name in models.list_models(module=models) if not name.startswith(UNFIT)]
    if backbone not in known:
        families = ", ".join(dict.fromkeys(re.match("[a-z]+", name)[0] for name in known))  # type: ignore[index]
        near = nearest(backbone, known) or f"; those of {families} do: their names stand in torchvision.models"
        raise InputError(f"model.backbone={backbone}: no backbone of torchvision that fits{near}")
    try:
        return models.get_model(backbone, weights="DEFAULT" if pretrained else None)  # type: ignore[no-any-return]
    except (URLError, OSError, RuntimeError) as error:
        weights = models.get_model_weights(backbone).DEFAULT  # type: ignore[attr-defined]
        raise InputError(
            f"model.pretrained=true: the weights of {backbone} cannot be had ({error}); fetch {weights.url} into "
            f"{torch.hub.get_dir()}/checkpoints, or train from scratch with model.pretrained=false"
        ) from error


def _one_channel(stem: nn.Conv2d) -> nn.Conv2d:
    """Copy a convolution, with the weights of its input channels summed."""
    gray = nn.Conv2d(  # draws weights; without them the layers made later would get other ones
        1,
        stem.out_channels,
        stem.kernel_size,  # type: ignore[arg-type]
        stride=stem.stride,  # type: ignore[arg-type]
        padding=stem.padding,  # type: ignore[arg-type]
        bias=stem.bias is not None,
    )
    with torch.no_grad():
        gray.weight.copy_(stem.weight.sum(dim=1, keepdim=True))
        if stem.bias is not None and gray.bias is not None:
            gray.bias.copy_(stem.bias)
    return gray
