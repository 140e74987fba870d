"""Engines: the same calibrated logits, computed by torch or by onnxruntime."""

import numpy as np
import torch
from torch import nn

from xray_pneumonia.reading.reader import Engine, Gray, Vector

BATCH = 64  # images at once; more do not fit the processor's caches


def torch_engine(net: nn.Module) -> Engine:
    """Let torch compute, on the GPU where there is one.

    Args:
        net: raw pixels (B, 1, S, S) -> calibrated logits (B,).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = net.eval().to(device)

    def run(pixels: Gray) -> Vector:
        logits = np.empty(len(pixels))
        with torch.inference_mode():
            for start in range(0, len(pixels), BATCH):
                batch = torch.from_numpy(np.array(pixels[start : start + BATCH]))[:, None].to(device)
                logits[start : start + BATCH] = net(batch).cpu().numpy()
        return logits

    return run
