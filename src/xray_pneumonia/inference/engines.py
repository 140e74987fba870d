"""Engines of torch: nets made ready to answer, without changing their answers beyond rounding."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from xray_pneumonia.inference.model import Engine, Gray, Vector

SMALL_BATCH, LARGE_BATCH = 16, 512  # images at once: what fits the caches of a processor; what fills a GPU


def torch_engine(net: nn.Module) -> Engine:
    """Let torch compute, on the GPU where there is one.

    Args:
        net: raw pixels (B, 1, S, S) -> calibrated logits (B,).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ready = fold_batch_norms(net).to(device)

    def run(batch: Gray) -> Vector:
        pixels: Tensor = torch.from_numpy(np.array(batch)).to(device)
        with torch.inference_mode():
            return np.asarray(ready(pixels[:, None]).cpu().numpy(), np.float64)

    return in_batches(run, LARGE_BATCH if device.type == "cuda" else SMALL_BATCH)


def in_batches(run: Callable[[Gray], Vector], size: int) -> Engine:
    """Cut images into batches of one size; the last may be smaller."""

    def engine(pixels: Gray) -> Vector:
        starts = range(0, len(pixels), size)
        return np.concatenate([np.empty(0), *(run(pixels[start : start + size]) for start in starts)])

    return engine


def fold_batch_norms(net: nn.Module) -> nn.Module:
    """Copy a net, with each batch norm that follows a convolution multiplied into its weights."""
    ready = copy.deepcopy(net).eval()
    for block in [module for module in ready.modules() if isinstance(module, nn.Sequential)]:
        for first, second in zip(list(block.named_children()), list(block.named_children())[1:], strict=False):
            if isinstance(first[1], nn.Conv2d) and isinstance(second[1], nn.BatchNorm2d):
                setattr(block, first[0], fuse_conv_bn_eval(first[1], second[1]))
                setattr(block, second[0], nn.Identity())
    return ready
