"""Measures how well `xray review` finds labels that were flipped on purpose.

python scripts/benchmarks/review.py DATA [FLIPS]    (the public chest X-rays; 3 minutes on one thread)

Flips 5 % of the labels at random (seed FLIPS, by default 1) through `data.corrections`, trains a small net on each of
four folds by patient, and compares the order of `xray review` with what was flipped. Labels that were wrong before
count as mistakes of the review.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from hydra import compose, initialize_config_module

from xray_pneumonia import compose as commands
from xray_pneumonia.config import build
from xray_pneumonia.data.datamodule import XRayDataModule

SHARE = 0.05
NET = [
    *("model.width=8", "data.image_size=64", "trainer.max_epochs=10", "trainer.keep=last", "trainer.patience=null"),
    *("scheduler=onecycle", "optimizer.lr=4e-3", "optimizer.weight_decay=0.05"),
    *("loss.class_weights=none", "loss.label_smoothing=0.1"),  # neither is needed; both let a small net learn faster
]
QUICK = ["evaluation=quick", "tracking.system_metrics=false", "trainer=cpu", "trainer.threads=1"]


def main() -> None:
    """Flip, train, review and print."""
    root, seed = Path(sys.argv[1]).resolve(), int([*sys.argv, "1"][2])
    with TemporaryDirectory() as home:
        places = [f"data.root={root}", f"home={home}", "data.image_size=64"]
        flips = flip(places, Path(home) / "flips.csv", seed=seed)
        changed = [f"data.corrections={home}/flips.csv", "data.folds=4", "data.fold=0,1,2,3", "sweep.name=review"]
        commands.launch("train", ["-m", *places[:2], *NET, *QUICK, *changed])
        commands.launch("review", [f"home={home}", "sweep_name=review", f"output={home}/review"])
        table = pd.read_csv(Path(home) / "review" / "review.csv")
    wrong = table["sha256"].isin(flips["sha256"])
    first = wrong.head(round(SHARE * len(table)))
    doubted = table["label"] != table["suggested_label"]
    print(f"{wrong.sum()} of {len(table)} labels flipped, seed {seed}")
    print(f"first {len(first)} films: precision {first.mean():.3f}, recall {first.sum() / wrong.sum():.3f}")
    found = (wrong & doubted).sum()
    print(f"{doubted.sum()} doubted: precision {found / doubted.sum():.3f}, recall {found / wrong.sum():.3f}")


def flip(places: list[str], file: Path, *, seed: int) -> pd.DataFrame:
    """Write the corrections that flip labels of training films at random; films of the same bytes go together."""
    with initialize_config_module("xray_pneumonia.conf", version_base="1.3"):
        cfg = compose("train", places)
    data: XRayDataModule = build(cfg.data, build(cfg.augmentation))
    data.open()
    films = data.records[data.records["split"] != "test"].drop_duplicates("sha256")
    chosen = films.sample(frac=SHARE, random_state=np.random.default_rng(seed))
    names = data.question.names
    flips = chosen[["sha256"]].assign(label=[names[1 - label] for label in chosen["label"]])
    flips.to_csv(file, index=False)
    return flips


if __name__ == "__main__":
    main()
