"""How long one waits: for help, for an error, for the first batch. Usage: python scripts/benchmarks/startup.py DIR."""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 3
DECODE = """
import sys, time
from hydra import compose, initialize_config_module
from xray_pneumonia.config import build
with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
    cfg = compose("train", [f"data.root={sys.argv[1]}", f"home={sys.argv[2]}", "augmentation=none"])
data = build(cfg.data, build(cfg.augmentation))
import xray_pneumonia.data.records as records, xray_pneumonia.data.cache as cache
start = time.perf_counter()
table = records.scan(sys.argv[1])
cache.open_cache(table, folder=cfg.data.cache_dir, image_size=cfg.data.image_size)
decoded = time.perf_counter()
data.prepare()
next(iter(data.train_dataloader()))
print(len(table), decoded - start, time.perf_counter() - decoded)
"""


def seconds(*arguments: str) -> float:
    """Time one command, whatever it answers."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "xray_pneumonia.cli", *arguments], capture_output=True, check=False)
    return time.perf_counter() - start


def main() -> None:
    """Print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="a folder of X-rays")
    root = str(parser.parse_args().root.resolve())
    commands = {
        "xray --help": ["--help"],
        "a misspelt key": ["train", "optimizer.lrr=1"],
        "any other config error": ["train", "optimizer.lr=-1"],
    }
    for name, arguments in commands.items():
        print(f"{name:<28} {statistics.median(seconds(*arguments) for _ in range(ROUNDS)):6.2f} s")
    with tempfile.TemporaryDirectory() as home:
        for name in ("cold", "warm"):
            done = subprocess.run(
                [sys.executable, "-c", DECODE, root, home], capture_output=True, text=True, check=True
            )
            images, cache, batch = done.stdout.split()
            print(f"{name}: cache of {images} files       {float(cache):6.2f} s, then first batch {float(batch):.2f} s")


if __name__ == "__main__":
    main()
