"""What a training writes into its run at its end: what came out, and the model. `recording` wrote where it began."""

from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import DictConfig
from torch import nn

from xray_pneumonia.config import plain
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.data.records import fingerprint
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.evaluation.report import figures
from xray_pneumonia.inference.bundle import GATE, Card, save_bundle
from xray_pneumonia.tracking.run import Run
from xray_pneumonia.types import CLASSES
from xray_pneumonia.workflows.training_record import leave_evidence
from xray_pneumonia.workflows.training_run import THRESHOLD, Trained
from xray_pneumonia.workflows.validation import Chosen, measure_evidence

CURVES = [f"{stage}/{name}" for stage in ("train", "val") for name in ("loss", "accuracy", "auroc")]


def record_result(run: Run, trained: Trained, data: XRayDataModule) -> None:
    """Record predictions, metrics and figures of the kept epoch."""
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
