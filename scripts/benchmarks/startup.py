"""How long one waits: for help, for an error, for the first step. Usage: python scripts/benchmarks/startup.py DIR.

Beside each time of the clock stands that of the processor, which other work on the machine changes less.
"""

import argparse
import resource
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
import xray_pneumonia.data.records as records, xray_pneumonia.data.images.cache as cache
start = time.perf_counter()
table = records.scan(sys.argv[1])
cache.open_cache(table, folder=cfg.data.cache_dir, image_size=cfg.data.image_size)
decoded = time.perf_counter()
data.prepare()
next(iter(data.train_dataloader()))
print(len(table), decoded - start, time.perf_counter() - decoded)
"""


STEP = """
import builtins, os, sys
from xray_pneumonia import cli

plain = builtins.__import__

def importing(name, *arguments, **named):  # Lightning is imported when the command imports it, not before
    made = plain(name, *arguments, **named)
    module = sys.modules.get("xray_pneumonia.training.classifier")
    if hasattr(module, "PneumoniaClassifier"):
        module.PneumoniaClassifier.on_train_batch_end = lambda *_: os._exit(0)
        builtins.__import__ = plain
    return made

builtins.__import__ = importing
sys.exit(cli.main())
"""


def seconds(*command: str, expected: int) -> tuple[float, float]:
    """Time one command; returns the seconds of the clock and of the processor."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != expected:
        raise RuntimeError(f"{' '.join(command[-3:])}: exit code {done.returncode}, expected {expected}: {done.stderr}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def report(name: str, *command: str, expected: int = 0) -> None:
    """Print the medians of a command."""
    rounds = [seconds(*command, expected=expected) for _ in range(ROUNDS)]
    wall, processor = map(statistics.median, zip(*rounds, strict=True))
    print(f"{name:<30} {wall:6.2f} s, {processor:6.2f} s of processor time", flush=True)


def main() -> None:
    """Print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="a folder of X-rays")
    root = str(parser.parse_args().root.resolve())
    command = ("-m", "xray_pneumonia.cli")
    report("xray --help", *command, "--help")
    report("a misspelt key", *command, "train", "optimizer.lrr=1", expected=2)
    report("any other config error", *command, "train", "optimizer.lr=-1", expected=2)
    with tempfile.TemporaryDirectory() as home:
        for name in ("cold", "warm"):
            done = subprocess.run(
                [sys.executable, "-c", DECODE, root, home], capture_output=True, text=True, check=True
            )
            images, cache, batch = done.stdout.split()
            print(f"{name}: cache of {images} files       {float(cache):6.2f} s, then first batch {float(batch):.2f} s")
        options = [f"data.root={root}", f"home={home}", "tracking.system_metrics=false", "resume=new"]
        seconds("-c", STEP, "train", *options, expected=0)  # makes the database
        report("xray train to its first step", "-c", STEP, "train", *options)


if __name__ == "__main__":
    main()
