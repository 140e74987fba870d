"""What a training writes into its run before its first step: where it comes from. `result` writes what came out."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from torch import nn

from xray_pneumonia.config import leaves, plain
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.data.records import fingerprint
from xray_pneumonia.stored_config import stored_text
from xray_pneumonia.tracking.provenance import collect
from xray_pneumonia.tracking.run import Run
from xray_pneumonia.tracking.store import masked

log = logging.getLogger(__name__)

# The code that computes weights and metrics; the rest of the package names, stores and draws.
COMPUTING = ("data/**/*.py", "models/*.py", "training/*.py", "evaluation/metrics.py", "workflows/train.py")
THRESHOLD = 0.5  # of the figures that compare runs; the operating point stands in the report and the bundle
RECORDS = "records.csv"


@dataclass(frozen=True)
class Trained:
    """What a training leaves behind: the run, and the kept epoch with its predictions on validation."""

    run_id: str
    uri: str
    best_epoch: int
    epochs: int
    predictions: pd.DataFrame
    metrics: dict[str, float]


def public_config(cfg: DictConfig) -> DictConfig:
    """Leave out what is nobody's business: the password of the store."""
    public = cfg.copy()
    public.tracking.uri = masked(cfg.tracking.uri) if cfg.tracking.uri else None
    return public


def config_text(cfg: DictConfig) -> str:
    """Word a config as every run keeps it: resolved, without secrets."""
    return stored_text(public_config(cfg))


def config_sha256(cfg: DictConfig) -> str:
    """Name a config: the tag `config_sha256` of the runs that it leads to."""
    return hashlib.sha256(config_text(cfg).encode()).hexdigest()


def record_origin(run: Run, cfg: DictConfig, data: XRayDataModule, net: nn.Module) -> None:
    """Record all that is known before the first step: config, data, code, machine."""
    run.log_config(config_text(cfg))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    run.log_params({**dict(leaves(plain(public_config(cfg)))), "model/parameters": parameters})
    run.log_metrics({"model/parameters": parameters})
    run.log_provenance(collect(COMPUTING))
    run.path(RECORDS).write_text(records_table(data).to_csv(index=False), encoding="utf-8")
    print_of_data = fingerprint(data.records)
    run.set_tags({"records_fingerprint": print_of_data})
    run.log_dataset(name=Path(cfg.data.root).name, digest=print_of_data, source=cfg.data.root, stage="train")
    sizes = data.records.groupby("split").agg(images=("id", "size"), patients=("patient", "nunique"))
    run.log_metrics(
        {f"data/{split}_{what}": n for what, column in sizes.items() for split, n in column.items() if split}
    )
    log.info("run %s: %d parameters, %s", run.run_id, parameters, _sizes(sizes))


def records_table(data: XRayDataModule) -> pd.DataFrame:
    """Give the records that a run keeps: ids and hashes, no picture."""
    return data.records[["id", "patient", "subtype", "label", "split", "sha256"]].replace({np.nan: ""})


def _sizes(sizes: pd.DataFrame) -> str:
    known = [split for split in ("train", "val") if split in sizes.index]
    return ", ".join(
        f"{split} {sizes['images'][split]} images of {sizes['patients'][split]} patients" for split in known
    )
