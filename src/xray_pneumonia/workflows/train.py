"""`xray train`: one run, from a composed config to metrics, figures, checkpoints and a bundle in MLflow."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, open_dict

from xray_pneumonia.config import Node, check
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.metrics import METRICS, Monitor, monitor_mode
from xray_pneumonia.sweeps.settings import take_sweep
from xray_pneumonia.terminal import console, make_table
from xray_pneumonia.types import Seed, Text

if TYPE_CHECKING:
    from xray_pneumonia.training.trainer import TrainerSettings
    from xray_pneumonia.workflows.training_run import Trained


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The top-level keys of train.yaml."""

    home: Text
    seed: Seed
    extensions: list[Text] | dict[str, str]  # modules as the command names them; once imported, with their hashes
    monitor: Monitor
    mode: Literal["max", "min"] | None
    data: Node
    augmentation: Node
    model: Node
    loss: Node
    optimizer: Node
    scheduler: Node
    trainer: Node
    evaluation: Node
    callbacks: list[Node]
    loggers: list[Node]
    tracking: Node


def main(cfg: DictConfig) -> float:
    """Train and print; returns the kept epoch's validation AUROC."""
    sweep = take_sweep(cfg)
    if sweep is None:
        return train_one(cfg).metrics["auroc"]
    from xray_pneumonia.sweeps.trial import Trial  # imports Optuna, which other trainings do without
    from xray_pneumonia.workflows.training import train

    take_resume(cfg)
    return Trial(sweep, cfg, train=lambda each, watch: train(each, watch=watch)).run()


def train_one(cfg: DictConfig) -> "Trained":
    """Train one classifier and print its result."""
    asked = take_resume(cfg)
    take_sweep(cfg)
    check_train(cfg)
    # Imported after the check, so that a wrong value need not wait for Lightning and MLflow.
    from xray_pneumonia.workflows import resume
    from xray_pneumonia.workflows.training import build_training, run_training

    resumption = resume.open_resumption(cfg, asked) if asked and asked != resume.NEW else None
    training = build_training(resumption.cfg if resumption else cfg)
    if asked is None:
        resume.mention_stopped(training.tracking, training.config.sha256, home=training.home)
    trained = run_training(training, resumption=resumption)
    _print(trained, training.settings)
    monitor = training.classifier.monitor
    monitored = "" if monitor == "val/auroc" else f" {monitor}={trained.monitored:.6f}"
    print(f"run_id={trained.run_id} val/auroc={trained.metrics['auroc']:.6f}{monitored}", flush=True)
    return trained


def take_resume(cfg: DictConfig) -> str | None:
    """Take the key `resume` out of a config: what is left is one training, the same whether or not it is resumed."""
    with open_dict(cfg):
        value = cfg.pop("resume", None)
    if value == "":
        raise InputError("resume='': name the run, or leave the key out to train anew")
    return None if value is None else str(value)


def check_train(cfg: DictConfig) -> dict[str, Any]:
    """Check a config and set its `mode`; returns its values, or raises InputError with all that is wrong."""
    values = check(cfg, TrainConfig)
    cfg.mode = values["mode"] = monitor_mode(values["monitor"], values["mode"])
    return values


def _print(trained: "Trained", settings: "TrainerSettings") -> None:
    """Print the result with what it rests on: at the operating point, and at 0.5."""
    from xray_pneumonia.evaluation.report.text import promise

    films, decision, out = trained.predictions, trained.decision, console(80)
    heads = (f"at {decision.threshold:.4f} ({decision.policy})", "at 0.5")
    title = f"Validation: {len(films)} images of {films['patient'].nunique()} patients, none of them trained on"
    rows = make_table("", ("metric", *heads), right=heads)
    for name, value in trained.metrics.items():
        rows.add_row(METRICS[name].title, f"{trained.operating.get(name, value):.4f}", f"{value:.4f}")
    out.print(title, style="bold")
    out.print(rows)
    kept = f"Best of {trained.epochs} epochs: {trained.best_epoch}, chosen on these same images, so slightly flattered."
    stopped = "none" if settings.patience is None else "where it stops"
    last = f"The last of {trained.epochs} epochs: {stopped} was chosen on these images."
    out.print(kept if settings.keep == "best" else last)
    out.print(promise(decision.promise))
    report = f"Report: {trained.report}\n" if trained.report else ""
    print(f"{report}See it: {trained.see_it}")
