"""Record a training in its run: config, data, code and machine at the start; results and model at the end."""

import hashlib
import logging
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from torch import nn

from xray_pneumonia.config import Node, is_foreign, leaves, plain
from xray_pneumonia.data.classes import counted
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.data.records import fingerprint
from xray_pneumonia.masking import masked
from xray_pneumonia.stored_config import stored_text
from xray_pneumonia.tracking.provenance import collect
from xray_pneumonia.tracking.run import Run
from xray_pneumonia.tracking.store import try_upload
from xray_pneumonia.workflows.own_code import keep_sources

if TYPE_CHECKING:  # imported when a training ends: pages and figures take seconds, which no first step waits for
    from xray_pneumonia.workflows.validation import Chosen

# The code that computes weights and metrics; the rest of the package names, stores and draws.
COMPUTING = ("data/**/*.py", "models/*.py", "training/*.py", "evaluation/metrics.py", "workflows/training.py")
THRESHOLD = 0.5  # of the figures that compare runs; the operating point stands in the report and the bundle
RECORDS = "records.csv"
LOADER_MODULE = "xray_pneumonia.workflows.pyfunc"  # with which MLflow opens a logged bundle
CURVES = [f"{stage}/{name}" for stage in ("train", "val") for name in ("loss", "accuracy", "auroc")]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunConfig:
    """A config as its run keeps it, resolved and without the store's secrets: as plain values and as text."""

    values: dict[str, Any]
    text: str

    @classmethod
    def of(cls, cfg: DictConfig) -> "RunConfig":
        """Take a checked config."""
        public = public_config(cfg)
        return cls(plain(public), stored_text(public))

    @property
    def sha256(self) -> str:
        """The tag `config_sha256` of its runs, 64 hex digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def public_config(cfg: DictConfig) -> DictConfig:
    """Leave out the secrets of the store; a reference to the environment stays one, and is not looked up again."""
    public = cfg.copy()
    public.tracking.uri = masked(cfg.tracking.uri).replace("${", "\\${") if cfg.tracking.uri else None
    return public


@dataclass(frozen=True)
class Trained:
    """What a training leaves behind: the run, and the kept epoch with its predictions on validation."""

    run_id: str
    uri: str
    best_epoch: int
    epochs: int
    predictions: pd.DataFrame
    metrics: dict[str, float]
    monitored: float  # the monitored metric at the kept epoch


def record_start(run: Run, config: RunConfig, data: XRayDataModule, net: nn.Module) -> None:
    """Record all that is known before the first step: config, data, code, machine."""
    parameters = sum(parameter.numel() for parameter in net.parameters())
    run.log_config(config.text)
    if run.staged and run.mlflow_id:
        required = config.values["tracking"]["required"]
        try_upload(run.store, run.mlflow_id, run.path("config.yaml"), required=required)
    run.log_params({**dict(leaves(config.values)), "model/parameters": parameters})
    run.log_metrics({"model/parameters": parameters})
    run.log_provenance(collect(COMPUTING))
    keep_sources(run)
    run.path(RECORDS).write_text(records_table(data).to_csv(index=False), encoding="utf-8")
    root, digest = config.values["data"]["root"], fingerprint(data.records)
    run.set_tags({"records_fingerprint": digest})
    run.log_dataset(name=Path(root).name, digest=digest, source=root, stage="train")
    splits = data.records[data.records["split"] != ""].groupby("split")
    sizes = splits.agg(images=("id", "size"), patients=("patient", "nunique"))
    run.log_metrics({f"data/{split}_{what}": n for what, column in sizes.items() for split, n in column.items()})
    counts = (f"{split} {n.images} images of {n.patients} patients" for split, n in sizes.iterrows() if split != "test")
    if data.left_out:
        run.log_metrics({"data/left_out": sum(data.left_out.values())})
        run.set_tags({"data.left_out": counted(data.left_out)})
    log.info("run %s: %d parameters, %s", run.run_id, parameters, ", ".join(counts))


def records_table(data: XRayDataModule) -> pd.DataFrame:
    """Select the records that a run keeps: ids and hashes, no image."""
    return data.records[["id", "patient", "subtype", "label", "split", "sha256"]].replace({np.nan: ""})


def record_result(run: Run, trained: Trained, data: XRayDataModule) -> None:
    """Record predictions, metrics and figures of the kept epoch."""
    from xray_pneumonia.evaluation import predictions
    from xray_pneumonia.evaluation.report import figures

    table, best_epoch, classes = trained.predictions, trained.best_epoch, data.question.names
    predictions.write(table, run.path("predictions/val.csv"))
    run.log_metrics({"best/epoch": best_epoch, **{f"best/{name}": value for name, value in trained.metrics.items()}})
    for name, figure in {
        "learning_curves": figures.learning_curves(run.metric_history(CURVES), best_epoch=best_epoch),
        "confusion_matrix": figures.confusion_matrix(table, threshold=THRESHOLD, classes=classes),
        "roc_and_precision_recall": figures.roc_and_precision_recall(table, threshold=THRESHOLD),
        "worst_mistakes": figures.worst_mistakes(table, data.images, threshold=THRESHOLD, classes=classes),
    }.items():
        figures.save(figure, run.path(f"figures/{name}.png"))


def record_bundle(
    run: Run, config: Node, net: nn.Module, data: XRayDataModule, chosen: "Chosen", *, epoch: int
) -> None:
    """Record the best weights, with all that a prediction needs, as an MLflow model."""
    from xray_pneumonia.inference.bundle import GATE, Card, save_bundle
    from xray_pneumonia.workflows.training_record import leave_evidence
    from xray_pneumonia.workflows.validation import measure_evidence

    decision = chosen.decision
    card = Card(
        net=dict(config["model"]),
        extensions=dict(config["extensions"]) if is_foreign(config["model"]) else {},
        class_names=list(data.question.names),
        image_size=data.image_size,
        temperature=decision.calibration.temperature,
        bias=decision.calibration.bias,
        operating_point=decision.threshold,
        operating_point_policy=decision.policy,
        band=[decision.band.low, decision.band.high],
        prevalence=decision.calibration.prevalence,
        promise=decision.promise,
        records_fingerprint=fingerprint(data.records),
        run_id=run.run_id,
        versions={name: version(name) for name in ("xray-pneumonia", "torch")},
        evidence=measure_evidence(chosen, data),
    )
    with TemporaryDirectory() as folder:
        save_bundle(Path(folder), net.cpu(), card)
        leave_evidence(run, Path(folder))
        chosen.gate.write(Path(folder) / GATE)
        if card.extensions:
            _add_graph(Path(folder))
        run.log_model(Path(folder), epoch=epoch, loader_module=LOADER_MODULE)


def _add_graph(folder: Path) -> None:
    """Put into the bundle of a net of others its exported graph, by which it predicts without the code."""
    from xray_pneumonia.inference.loading import load_bundle
    from xray_pneumonia.inference.onnx import GRAPH, write_graph

    try:
        write_graph(load_bundle(folder, name="model"), folder / GRAPH)
    except Exception as error:  # the exporter has many kinds; and its packages may be missing
        reason = " ".join(str(error).split())[:200]
        log.warning("the model holds no graph, so that it predicts with extensions=[...] alone: %s", reason)
