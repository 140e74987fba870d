"""Compute the logits of batches."""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn


def predict_logits(
    net: nn.Module, batches: Iterable[Mapping[str, Tensor]], *, device: torch.device
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Run a net over batches.

    Returns:
        The records' row numbers (N,) and their logits (N,).
    """
    net.eval().to(device)
    index, logits = [], []
    with torch.inference_mode():
        for batch in batches:
            logits.append(net(batch["image"].to(device)).double().cpu())
            index.append(batch["index"])
    return torch.cat(index).numpy(), torch.cat(logits).numpy()
