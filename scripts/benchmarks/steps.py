"""Seconds per step of one way to train, in a process of its own: python scripts/benchmarks/steps.py WAY ROOT HOME.

Prints one JSON line. Every way takes its time at the beginning of each step, in the same manner. With --turns, two ways
take turns step by step, so that whatever else the machine does meets both alike.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

WARM, BATCH = 4, 64
BARE = (
    "array",
    "layout",
    "allocator",
    "pooling",
    "one_thread",
    "plain_step",
)  # each adds a lever to the one before; the last two have all but one
XRAY = {
    "xray": ["experiment=notebook_final"],
    "xray_none": ["model=resnet", "augmentation=none"],
    "xray_strong": ["model=resnet", "augmentation=strong"],
    "xray_plain_step": ["model=resnet", "augmentation=none", "optimizer.fused=false"],
}
Loss = Callable[[Tensor, Tensor], Tensor]


class Clock:
    """How long each step took.

    Args:
        turns: where to read that it is this way's turn, and where to write that it is the other's; None takes no turns.
    """

    def __init__(self, turns: tuple[int, int] | None = None) -> None:
        self._turns = turns
        self._begun = self._first = 0.0
        self._steps: list[float] = []

    def tick(self) -> None:
        """End a step and begin the next one."""
        now = time.time()
        if self._first:
            self._steps.append(now - self._begun)
        else:
            self._first = now
        if self._turns:
            self._wait_for_turn(*self._turns)
        self._begun = time.time()

    def _wait_for_turn(self, mine: int, other: int) -> None:
        if self._steps:
            with contextlib.suppress(BrokenPipeError):  # the other is done
                os.write(other, b".")
        os.read(mine, 1)

    def report(self, **more: Any) -> None:
        """Print seconds a step, and from the start of the process to the first one."""
        counted = self._steps[WARM:]
        if self._turns:
            more["steps"] = counted
        born = psutil.Process().create_time()
        print(json.dumps({"step": statistics.median(counted), "first": self._first - born, **more}))


def composed(root: str, home: str, *overrides: str) -> Any:
    """Compose train.yaml."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        return compose("train", [f"data.root={root}", f"home={home}", "experiment=notebook_final", *overrides])


def bare(way: str, root: str, home: str, clock: Clock, steps: int) -> dict[str, float]:
    """Train without any framework, with the levers up to `way`."""
    from torch.utils.flop_counter import FlopCounterMode

    from xray_pneumonia.config import build
    from xray_pneumonia.models.layers import to_channels_last
    from xray_pneumonia.training import performance

    cfg = composed(root, home, "augmentation=none", f"optimizer.fused={way != 'plain_step'}")
    levers = BARE[1 : BARE.index(way) + 1]
    if way == "one_thread":
        torch.set_num_threads(1)
    if "allocator" in levers:
        performance.keep_memory()
    data = build(cfg.data, build(cfg.augmentation))
    data.prepare()
    net = build(cfg.model)
    if "pooling" not in levers:
        for number, (convolution, pool, activation) in enumerate(net.blocks):
            net.blocks[number] = nn.Sequential(convolution, activation, pool)
    net = to_channels_last(net) if "layout" in levers else net
    optimizer, loss = build(cfg.optimizer, net.parameters()), build(cfg.loss, data.class_counts())
    batches = batches_for_ever(data.train_dataloader)
    for _ in range(steps):
        clock.tick()
        batch = next(batches)
        optimizer.zero_grad()
        loss(net(batch["image"]), batch["label"]).backward()
        optimizer.step()
    with FlopCounterMode(display=False) as counter:
        loss(net(batch["image"]), batch["label"]).backward()
    return {"flop": counter.get_total_flops()}


def batches_for_ever(loader: Callable[[], Any]) -> Iterator[Any]:
    """Serve epoch after epoch."""
    while True:
        yield from loader()


def ceiling(clock: Clock, steps: int, *, side: int = 2048) -> dict[str, float]:
    """Multiply large matrices: as fast as this machine computes anything."""
    left, right = torch.randn(side, side), torch.randn(side, side)
    for _ in range(steps):
        clock.tick()
        left @ right
    return {"flop": 2 * side**3}


def first_day(root: str, home: str, clock: Clock, steps: int) -> None:
    """Train as one does on the first day with Lightning: files decoded in every epoch, default trainer."""
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader
    from torchvision import transforms as T
    from torchvision.datasets import ImageFolder

    from xray_pneumonia.config import build

    net = build(composed(root, home).model)

    class FirstDay(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, _: int) -> Tensor:
            clock.tick()
            loss = nn.functional.binary_cross_entropy_with_logits(self.net(batch[0] * 255), batch[1].float())
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.RMSprop(self.parameters(), lr=1e-4)

    prepare = T.Compose([T.Grayscale(), T.Resize((128, 128)), T.ToTensor()])
    loader = DataLoader(ImageFolder(f"{root}/train", prepare), batch_size=BATCH, shuffle=True)
    trainer = pl.Trainer(max_epochs=1, limit_train_batches=steps, default_root_dir=home, enable_progress_bar=False)
    trainer.fit(FirstDay(), loader)


def through_xray(overrides: list[str], root: str, home: str, clock: Clock, steps: int) -> None:
    """Train by the command line, MLflow on."""
    from xray_pneumonia import cli

    def watched(self: Any, batch: Any, number: int) -> Tensor:
        clock.tick()
        return self._step(batch, self.outputs["fitting"])  # type: ignore[no-any-return]

    sys.argv = ["xray", "train", *overrides, f"data.root={root}", f"home={home}", "trainer=cpu", "trainer.max_epochs=1"]
    sys.argv += [f"trainer.limit_train_batches={steps}", "evaluation=quick"]
    from xray_pneumonia.training.classifier import PneumoniaClassifier

    PneumoniaClassifier.training_step = watched  # type: ignore[method-assign, assignment]
    standard, sys.stdout = sys.stdout, sys.stderr
    cli.main()
    sys.stdout = standard


def main() -> None:
    """Run one way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=["ceiling", *BARE, *XRAY, "first_day"])
    parser.add_argument("root", type=Path)
    parser.add_argument("home", type=Path)
    parser.add_argument("--steps", type=int, default=20, help="of which the first four only warm up")
    parser.add_argument("--turns", type=int, nargs=2, help="descriptors: to read one's turn, to write the other's")
    asked = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    root, home = str(asked.root.resolve()), str(asked.home.resolve())
    clock = Clock(asked.turns and tuple(asked.turns))
    torch.manual_seed(0)
    more: dict[str, float] = {}
    if asked.way == "ceiling":
        more = ceiling(clock, asked.steps)
    elif asked.way in BARE:
        more = bare(asked.way, root, home, clock, asked.steps)
    elif asked.way in XRAY:
        through_xray(XRAY[asked.way], root, home, clock, asked.steps)
    else:
        first_day(root, home, clock, asked.steps)
    clock.report(**more)


if __name__ == "__main__":
    main()
