"""Record a training in its run: config, data, code and machine at the start; results and model at the end."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from torch import nn

from xray_pneumonia.config import INIT, Node, is_foreign, plain
from xray_pneumonia.data.classes import counted
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.data.records import fingerprint
from xray_pneumonia.evaluation.assessment import Decision
from xray_pneumonia.masking import masked
from xray_pneumonia.stored_config import stored_text
from xray_pneumonia.tracking.provenance import collect
from xray_pneumonia.tracking.run import Run
from xray_pneumonia.tracking.server import artifact_path
from xray_pneumonia.tracking.store import try_upload
from xray_pneumonia.workflows.choices import changes, parameters_of
from xray_pneumonia.workflows.evaluation_data import CORRECTIONS
from xray_pneumonia.workflows.own_code import keep_sources

if TYPE_CHECKING:  # imported when a training ends: pages and figures take seconds, which no first step waits for
    from xray_pneumonia.workflows.validation import Chosen

# The code that computes weights and metrics, hashed as `source_sha256`; no other code changes a number.
COMPUTING = ("data/**/*.py", "models/*.py", "training/*.py", "evaluation/metrics.py", "workflows/training.py")
THRESHOLD = 0.5  # of the metrics that compare runs, `best/...`; those at the operating point are `operating/...`
COLUMNS = dict.fromkeys(("id", "patient", "split", "sha256"), "string") | {"label": "long"}  # of a dataset in MLflow
RECORDS = "records.csv"
LOADER_MODULE = "xray_pneumonia.workflows.pyfunc"  # with which MLflow opens a logged bundle
CURVES = [f"{stage}/{name}" for stage in ("train", "val") for name in ("loss", "accuracy", "auroc")]
DESCRIPTION = "mlflow.note.content"
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
    see_it: str  # the address of the run, or the command that shows it
    best_epoch: int
    epochs: int
    predictions: pd.DataFrame
    metrics: dict[str, float]  # at a threshold of 0.5
    operating: dict[str, float]  # those that depend on calibration and operating point, at the operating point
    decision: Decision
    report: Path | None  # None where none was asked for
    monitored: float  # the monitored metric at the kept epoch

    @property
    def summary(self) -> str:
        """Word the result in one line, with what it rests on."""
        at = {**self.metrics, **self.operating}
        return summarise(self.predictions, at, self.metrics, self.decision.threshold, split="validation")


def record_start(run: Run, config: RunConfig, data: XRayDataModule, net: nn.Module) -> None:
    """Record all that is known before the first step: config, data, code, machine."""
    parameters = sum(parameter.numel() for parameter in net.parameters())
    run.log_config(config.text)
    if run.staged and run.mlflow_id:
        required = config.values["tracking"]["required"]
        try_upload(run.store, run.mlflow_id, run.path("config.yaml"), required=required)
    records = data.records
    sizes = records[records["split"] != ""].groupby("split").agg(images=("id", "size"), patients=("patient", "nunique"))
    counts = {f"data/{split}_{what}": n for what, column in sizes.items() for split, n in column.items()}
    run.log_params({**parameters_of(config.values), "model/parameters": parameters, **counts})
    run.set_tags({"changes": changes()})
    run.set_tags({DESCRIPTION: describe(run, "Running.", None)})
    run.log_provenance(collect(COMPUTING))
    keep_sources(run)
    write_records(run, records)
    record_dataset(run, records, root=config.values["data"]["root"], stage="train")
    if data.corrected:
        run.path(CORRECTIONS).write_bytes(data.corrected.text)
        run.set_tags({"data.corrections": str(data.corrected), "data.corrections_sha256": data.corrected.sha256})
    if data.left_out:
        run.log_params({"data/left_out": sum(data.left_out.values())})
        run.set_tags({"data.left_out": counted(data.left_out)})
    named = (f"{split} {n.images} images of {n.patients} patients" for split, n in sizes.iterrows() if split != "test")
    log.info("run %s: %d parameters, %s", run.run_id, parameters, ", ".join(named))


def summarise(
    table: pd.DataFrame, at: Mapping[str, float], half: Mapping[str, float], threshold: float, *, split: str
) -> str:
    """Word metrics at the operating point and at 0.5 in one line, with the images that they rest on."""
    rates = ", ".join(f"{name} {at[name]:.4f} ({half[name]:.4f})" for name in ("sensitivity", "specificity"))
    basis = f"{split}, {len(table)} images of {table['patient'].nunique()} patients"
    return f"At {threshold:.4f} (at 0.5): {rates}; AUROC {at['auroc']:.4f}; {basis}."


def record_dataset(run: Run, records: pd.DataFrame, *, root: str, stage: str) -> str:
    """Record the data of a run by fingerprint, with their columns and how many there are of what.

    Returns:
        The fingerprint, 64 hex digits.
    """
    digest = fingerprint(records)
    parts = records.groupby(["split", "class_name"]).size()
    profile = {"num_rows": len(records), "patients": int(records["patient"].nunique())}
    profile |= {" ".join(map(str, part)).strip(): int(n) for part, n in zip(parts.index, parts, strict=True)}
    run.set_tags({"records_fingerprint": digest})
    columns = [{"name": name, "type": kind, "required": True} for name, kind in COLUMNS.items()]
    described = {"schema": json.dumps({"mlflow_colspec": columns}), "profile": json.dumps(profile)}
    run.log_dataset(name=Path(root).name, digest=digest, source=root, stage=stage, described=described)
    return digest


def describe(run: Run, result: str, report: Path | None) -> str:
    """Write a run's description: the result, what is new in its config, and where its report is."""
    name = report.relative_to(run.folder).as_posix() if report else "predictions/val.csv"
    link = artifact_path(run.store, str(run.mlflow_id), name)
    new = run.tags.get("changes", "unknown: begun by an older version")
    return "  \n".join([result, f"New: `{new}`", f"{'Report' if report else 'Predictions'}: [{name}]({link})"])


def record_origin(run: Run, cfg: DictConfig, records: pd.DataFrame, *, root: str, stage: str) -> None:
    """Record config, changes, code and data of a command that trains no net."""
    public = public_config(cfg)
    run.log_config(OmegaConf.to_yaml(public, resolve=True))
    run.log_params(parameters_of(plain(public)))
    run.set_tags({"changes": changes()})
    run.log_provenance(collect(COMPUTING))
    record_dataset(run, records, root=root, stage=stage)


def records_table(records: pd.DataFrame) -> pd.DataFrame:
    """Select the records that a run keeps: ids and hashes, no image."""
    return records[["id", "patient", "subtype", "label", "split", "sha256"]].replace({np.nan: ""})


def write_records(run: Run, records: pd.DataFrame) -> None:
    """Keep the records with a run."""
    run.path(RECORDS).write_text(records_table(records).to_csv(index=False), encoding="utf-8")


def read_records(path: Path) -> pd.DataFrame:
    """Read the records that a run keeps, as text, by their ids."""
    return pd.read_csv(path, dtype=str, keep_default_na=False).set_index("id")


def record_result(run: Run, trained: Trained, data: XRayDataModule) -> None:
    """Record predictions, metrics and figures of the kept epoch."""
    from xray_pneumonia.evaluation import predictions
    from xray_pneumonia.evaluation.report import figures

    table, best_epoch, classes = trained.predictions, trained.best_epoch, data.question.names
    threshold = trained.decision.threshold
    predictions.write(table, run.path("predictions/val.csv"))
    loss = dict(run.metric_history(["val/loss"])["val/loss"]).get(best_epoch, np.nan)
    run.log_metrics({"best/epoch": best_epoch, "best/loss": loss})
    run.log_metrics({f"best/{name}": value for name, value in trained.metrics.items()})
    run.log_metrics({f"operating/{name}": value for name, value in trained.operating.items() if not np.isnan(value)})
    run.log_metrics({f"promise/{name}": float(value) for name, value in (trained.decision.promise or {}).items()})  # type: ignore[arg-type]
    run.set_tags({DESCRIPTION: describe(run, trained.summary, trained.report)})
    for name, figure in {
        "learning_curves": figures.learning_curves(run.metric_history(CURVES), best_epoch=best_epoch),
        "confusion_matrix": figures.confusion_matrix(table, threshold=threshold, classes=classes),
        "roc_and_precision_recall": figures.roc_and_precision_recall(table, threshold=threshold),
        "worst_mistakes": figures.worst_mistakes(table, data.images, threshold=threshold, classes=classes),
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
        net={name: value for name, value in config["model"].items() if name != INIT},
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
