"""A net, a loss, an optimizer and a schedule of one's own: `xray train extensions=[my_models] model=mine`."""

import torch
from torch import nn


class Net(nn.Module):
    """Raw pixels (B, 1, H, W), uint8 -> logits (B,) or (B, 1) of PNEUMONIA; its parameters are the keys of `model`."""

    def __init__(self, width: int = 16, dropout: float = 0.1):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 5, stride=2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(width, 1),
        )

    def forward(self, image):
        return self.layers(image.float() / 255)


class SoftMargin(nn.Module):
    """A loss is a class, whose forward takes logits (B,) and labels (B,) of 0 and 1, and gives one number ..."""

    def __init__(self, sharpness: float = 1.0):
        super().__init__()
        self.sharpness = sharpness

    def forward(self, logits, labels):
        return nn.functional.softplus(-self.sharpness * logits * (2 * labels - 1)).mean()


def brier(logits, labels, *, weight: float = 1.0):
    """... or a function."""
    return weight * (torch.sigmoid(logits) - labels).square().mean()


def nadam(parameters, *, lr: float = 1e-3):
    """An optimizer is made of the net's parameters; a class, such as torch's own, does as well."""
    return torch.optim.NAdam(parameters, lr=lr)


def stairs(optimizer, *, every: int = 5):
    """A schedule is made of the optimizer."""
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=every)
