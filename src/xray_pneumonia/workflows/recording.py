"""What a training writes into its run: where it comes from, what came out, and the model."""

import hashlib
import logging
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from torch import nn

from xray_pneumonia.config import leaves, plain
from xray_pneumonia.config_stored import stored_text
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.data.records import CLASSES, fingerprint
from xray_pneumonia.evaluation import figures, predictions
from xray_pneumonia.models.bundle import Card, save_bundle
from xray_pneumonia.reading.bundles import GATE
from xray_pneumonia.tracking.provenance import collect
from xray_pneumonia.tracking.run import Run
from xray_pneumonia.tracking.store import masked
from xray_pneumonia.workflows.evidence import leave_evidence
from xray_pneumonia.workflows.validation import Chosen, measure_evidence

log = logging.getLogger(__name__)

THRESHOLD = 0.5  # of the figures that compare runs; the operating point stands in the report and the bundle
CURVES = [f"{stage}/{name}" for stage in ("train", "val") for name in ("loss", "accuracy", "auroc")]
RECORDS = "records.csv"


@dataclass(frozen=True)
class Trained:
    """What a training leaves behind: the run, and the best epoch with its predictions on validation."""

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
    run.log_provenance(collect())
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


def record_result(run: Run, trained: Trained, data: XRayDataModule) -> None:
    """Record predictions, metrics and figures of the best epoch."""
    table = trained.predictions
    predictions.write(table, run.path("predictions/val.csv"))
    run.log_metrics({"best/epoch": trained.best_epoch, **{f"best/{k}": v for k, v in trained.metrics.items()}})
    pictures = {
        "learning_curves": figures.learning_curves(run.metric_history(CURVES), best_epoch=trained.best_epoch),
        "confusion_matrix": figures.confusion_matrix(table, threshold=THRESHOLD),
        "roc_and_precision_recall": figures.roc_and_precision_recall(table, threshold=THRESHOLD),
        "worst_mistakes": figures.worst_mistakes(table, data.images, threshold=THRESHOLD),
    }
    for name, picture in pictures.items():
        figures.save(picture, run.path(f"figures/{name}.png"))


def record_bundle(
    run: Run, cfg: DictConfig, net: nn.Module, data: XRayDataModule, chosen: Chosen, *, epoch: int
) -> None:
    """Record the best weights, with all that a prediction needs, as an MLflow model."""
    decision = chosen.decision
    card = Card(
        net=plain(cfg.model),
        class_names=list(CLASSES),
        image_size=data.image_size,
        temperature=decision.calibration.temperature,
        bias=decision.calibration.bias,
        operating_point=decision.threshold,
        operating_point_policy=decision.policy,
        band=[decision.band.low, decision.band.high],
        records_fingerprint=fingerprint(data.records),
        run_id=run.run_id,
        versions={name: version(name) for name in ("xray-pneumonia", "torch")},
        evidence=measure_evidence(chosen, data),
    )
    with TemporaryDirectory() as folder:
        save_bundle(Path(folder), net.cpu(), card)
        leave_evidence(run, Path(folder))
        if chosen.gate is not None:
            chosen.gate.write(Path(folder) / GATE)
        run.log_model(Path(folder), epoch=epoch)
