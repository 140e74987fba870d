"""Memory of a training, and time to serve an image, as the cache grows: growth.py IMAGES FOLDER [--steps N].

Trains the small ResNet for some steps, serves the rest of the epoch, and prints the resident memory in MB, in which
mapped images count, and the microseconds that serving an image took.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from hydra import compose, initialize_config_module
from torch import nn

from xray_pneumonia.config import build
from xray_pneumonia.data.images.cache import ImageCache
from xray_pneumonia.data.loaders import Batches, EpochSampler
from xray_pneumonia.models.layers import to_channels_last
from xray_pneumonia.training import performance

SIDE, PIECE = 128, 1000


def cache_of(images: int, folder: Path) -> ImageCache:
    """Fill a cache with noise."""
    path = folder / f"{images}.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(images, SIDE, SIDE))
    noise = np.random.default_rng(0).integers(0, 256, (PIECE, SIDE, SIDE), np.uint8)
    for start in range(0, images, PIECE):
        array[start : start + PIECE] = noise[: images - start]
    array.flush()
    return ImageCache(
        pd.DataFrame({"label": np.arange(images) % 2}), np.load(path, mmap_mode="r", allow_pickle=False), folder
    )


def main() -> None:
    """Train and serve one epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        cfg = compose("train", ["model=resnet"])
    performance.keep_memory()
    net = to_channels_last(build(cfg.model))
    optimizer, loss = build(cfg.optimizer, net.parameters()), nn.BCEWithLogitsLoss()
    batches = Batches(cache_of(asked.images, asked.folder), augment=None, sides=[SIDE], epochs=1)
    serving = 0.0
    for step, request in enumerate(EpochSampler(np.arange(asked.images), batch_size=64, shuffle=True, seed=0)):
        start = time.perf_counter()
        batch = batches[request]
        serving += time.perf_counter() - start
        if step < asked.steps:
            optimizer.zero_grad()
            loss(net(batch["image"]), batch["label"]).backward()
            optimizer.step()
    print(psutil.Process().memory_info().rss / 2**20, serving / asked.images * 1e6)


if __name__ == "__main__":
    main()
