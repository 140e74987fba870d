"""Train one classifier: build what a config names, fit, evaluate, record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback
from torch import nn

from xray_pneumonia.config import INIT, Node, build, is_foreign
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.data.files import require_unchanged
from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation import predictions
from xray_pneumonia.evaluation.assessment import OutOfFold
from xray_pneumonia.evaluation.metrics import OF_RANKS, epoch_metrics, table_metrics
from xray_pneumonia.evaluation.settings import EvaluationSettings
from xray_pneumonia.evaluation.threshold import require_enough
from xray_pneumonia.models.layers import require_last_batch, require_logits, takes, to_channels_last
from xray_pneumonia.tracking.lightning_logger import RunLogger
from xray_pneumonia.tracking.run import Run, start_run
from xray_pneumonia.tracking.store import Store, TrackingSettings, open_database, open_or_offline
from xray_pneumonia.training import checkpoints, performance
from xray_pneumonia.training.callbacks import DataCheck, build_callbacks, keep_averaged, require_kept
from xray_pneumonia.training.classifier import PneumoniaClassifier, predict_logits
from xray_pneumonia.training.finetuning import freeze, parameter_groups
from xray_pneumonia.training.losses import require_loss
from xray_pneumonia.training.optimizers import Horizon, require_optimizer
from xray_pneumonia.training.trainer import TrainerSettings, build_trainer, fit
from xray_pneumonia.workflows import resume
from xray_pneumonia.workflows.choices import group_choices, run_name
from xray_pneumonia.workflows.initial_weights import InitialWeights, find_weights
from xray_pneumonia.workflows.loggers import build_loggers, require_packages
from xray_pneumonia.workflows.train import check_train
from xray_pneumonia.workflows.training_run import THRESHOLD, RunConfig, Trained, record_start


class Watch(Protocol):
    """What a sweep or a reproduction adds to a training: name and tags of the run, callbacks, a call at its end."""

    name: str
    tags: dict[str, str]
    run_id: str | None  # of the run that is resumed; None for a new one
    scored: bool  # whether the parts of `robust/score` are measured

    @property
    def callbacks(self) -> list[Callback]:
        """What Lightning calls."""
        ...

    def close(self, run: Run, *, best_epoch: int) -> None:
        """Write to the run before it ends."""
        ...


@dataclass(frozen=True, kw_only=True)
class Training:
    """Everything that a config names, built once; the data are read, audited and split."""

    config: RunConfig
    home: Path
    settings: TrainerSettings
    evaluation: EvaluationSettings
    tracking: TrackingSettings
    data: XRayDataModule
    classifier: PneumoniaClassifier
    callbacks: list[Callback]
    out_of_fold: OutOfFold | None
    initial: dict[str, str]  # tags of the weights that it starts from


def train(cfg: DictConfig, *, watch: Watch | None = None) -> Trained:
    """Train one classifier and record the run, for a sweep or a reproduction where they `watch`."""
    return run_training(build_training(cfg), watch=watch)


def build_training(cfg: DictConfig) -> Training:
    """Check a config, build what it names, and prepare the data."""
    values = check_train(cfg)
    pl.seed_everything(values["seed"], workers=True, verbose=False)
    settings: TrainerSettings = build(values["trainer"])
    evaluation, tracking, home = build(values["evaluation"]), build(values["tracking"]), Path(values["home"])
    callbacks = require_kept([build(node, key="callbacks") for node in values["callbacks"]], settings)
    require_packages(values["loggers"])
    augmentation = build(values["augmentation"], key="augmentation")
    data: XRayDataModule = build(values["data"], augmentation)
    initial = _initial_weights(values["model"], tracking, home)
    net = _build_net(values["model"], data.image_size, initial)
    net = to_channels_last(net) if settings.channels_last else net
    require_loss(build(values["loss"], [1, 1], key="loss"))  # before any data are read
    data.spread_over(settings.max_epochs)
    augmentation.require_sides(data.sides)
    _require_sides(net, data.sides)
    freeze(net, settings.freeze)
    _require_own_optimizer(values, net, settings)
    performance.prepare_process(keep_freed_memory=settings.keep_freed_memory, threads=settings.threads)
    data.prepare()
    require_last_batch(net, sum(data.class_counts()), data.batch_size, data.sides)
    out_of_fold = _check_evaluation(evaluation, data, lambda: open_database(tracking, home=home))
    classifier = PneumoniaClassifier(
        net,
        loss=require_loss(build(values["loss"], data.class_counts(), key="loss")),
        optimizer=partial(build, values["optimizer"], key="optimizer"),  # of the net's parameters, in each process
        scheduler=partial(build, values["scheduler"], key="scheduler"),
        monitor=values["monitor"],
        mode=values["mode"],
        backbone_lr=settings.backbone_lr,
    )
    return Training(
        config=RunConfig.of(cfg),
        home=home,
        settings=settings,
        evaluation=evaluation,
        tracking=tracking,
        data=data,
        classifier=classifier,
        callbacks=callbacks,
        out_of_fold=out_of_fold,
        initial=initial.tags if initial else {},
    )


def _require_own_optimizer(values: Node, net: nn.Module, settings: TrainerSettings) -> None:
    """Make an optimizer and a schedule of others once, before any data are read."""
    if is_foreign(values["optimizer"]) or is_foreign(values["scheduler"]):
        made = build(values["optimizer"], parameter_groups(net, backbone_lr=settings.backbone_lr), key="optimizer")
        horizon = Horizon(settings.max_epochs, 10, values["monitor"], values["mode"])
        require_optimizer(made, lambda optimizer: build(values["scheduler"], optimizer, horizon, key="scheduler"))


def _require_sides(net: nn.Module, sides: list[int]) -> None:
    if refused := [side for side in sides if not takes(net, side)]:
        raise InputError(
            f"data.progressive={sides}: this net takes no images of {refused[0]} pixels; choose one that pools "
            "over the whole image (model=resnet, model=torchvision), or data.progressive=null"
        )


def _check_evaluation(
    evaluation: EvaluationSettings, data: XRayDataModule, open_store: Callable[[], Store]
) -> OutOfFold | None:
    """Refuse before the training what could not be chosen after it; returns the out-of-fold predictions, if any."""
    chosen_on = data.records[data.records["split"].eq("val") & data.records["error"].eq("")]
    well, ill = (chosen_on.loc[chosen_on["label"] == label, "patient"].nunique() for label in (0, 1))
    require_enough(evaluation.operating_point, ill=ill, well=well)
    if not evaluation.out_of_fold:
        return None
    from xray_pneumonia.workflows.stored_predictions import read_out_of_fold

    return read_out_of_fold(evaluation.out_of_fold, open_store)


def _initial_weights(node: Node, tracking: TrackingSettings, home: Path) -> InitialWeights | None:
    named = node.get(INIT)
    return find_weights(named, tracking=tracking, home=home) if named is not None else None


def _build_net(node: Node, side: int, initial: InitialWeights | None) -> nn.Module:
    if initial and "pretrained" in node:
        node = {**node, "pretrained": False}  # nothing is downloaded to be replaced
    net: nn.Module = build(node, key="model")
    net = require_logits(net, side, name=node["_target_"]) if is_foreign(node) else net
    if initial:
        initial.load_into(net)
    return net


def run_training(
    training: Training, *, watch: Watch | None = None, resumption: resume.Resumption | None = None
) -> Trained:
    """Fit, evaluate and record; a sweep or a reproduction may `watch`, and a stopped run may be resumed."""
    tracking = training.tracking
    store = resumption.store if resumption else open_or_offline(tracking, home=training.home)
    known = resumption or watch
    run_id = known.run_id if known else None
    sha256 = resumption.sha256 if resumption else training.config.sha256
    identity = resume.identity_of(sha256, training.data, training.settings)
    start = resume.find_checkpoint(store, run_id, identity, training.data) if run_id else None
    if resumption:
        resume.claim(store, resumption.run_id)
    values = training.config.values
    name = watch.name if watch else tracking.run_name or run_name(store, values, group_choices(values))
    tags = {"verb": "train", **training.initial, **(watch.tags if watch else {})}
    with (
        start_run(store, name=name, tags=tags, system_metrics=tracking.system_metrics, run_id=run_id) as run,
        resume.explain_stop(run, resumable=watch is None),
    ):
        if start is None:
            record_start(run, training.config, training.data, training.classifier.net)
        trainer = _fit(training, run, identity, watch.callbacks if watch else [], start=start)
        trained = _evaluate(training, run, trainer, scored=bool(watch and watch.scored))
        if watch:
            watch.close(run, best_epoch=trained.best_epoch)
    return trained


def _fit(
    training: Training, run: Run, identity: Mapping[str, str], watching: list[Callback], *, start: Path | None
) -> pl.Trainer:
    monitor, mode = training.classifier.monitor, training.classifier.mode
    folder = run.folder / "checkpoints"
    callbacks = build_callbacks(
        training.settings, own=training.callbacks, monitor=monitor, mode=mode, folder=folder, identity=identity
    )
    callbacks += [DataCheck(partial(require_unchanged, training.data.records)), *watching]
    loggers = [RunLogger(run), *build_loggers(training.config.values["loggers"], run)]
    trainer = build_trainer(training.settings, callbacks=callbacks, loggers=loggers, folder=run.folder)
    fit(trainer, training.classifier, training.data, start=start)
    keep_averaged(trainer, folder / checkpoints.BEST)
    return trainer


def _evaluate(training: Training, run: Run, trainer: pl.Trainer, *, scored: bool) -> Trained:
    """Evaluate the kept epoch on validation and record the result."""
    # Pages, figures and heat maps: they take seconds to import, which no first step waits for.
    from xray_pneumonia.workflows.training_run import record_bundle, record_result
    from xray_pneumonia.workflows.validation import assess_parts, assess_validation, predict_shift, record_shift

    data, net, device = training.data, training.classifier.net, trainer.strategy.root_device
    best_epoch = _load_best(training.classifier, run.folder / "checkpoints" / checkpoints.BEST)
    index, logits = predict_logits(net, data.val_dataloader(), device=device)
    table = predictions.tabulate(data.records, index, logits)
    values, shifted = training.config.values, predict_shift(net, data, device=device)
    settings, elsewhere = training.evaluation, training.out_of_fold
    chosen = assess_validation(run, values, net, data, table, settings=settings, shifted=shifted, out_of_fold=elsewhere)
    shift = record_shift(run, shifted, chosen.decision)
    if scored:
        assess_parts(run, net, data, chosen, part=values["data"]["split"], shift=shift, seed=settings.seed)
    labels = chosen.predictions["label"].to_numpy()
    metrics = epoch_metrics(chosen.predictions["logit"].to_numpy(), labels, threshold=THRESHOLD)
    operating = table_metrics(chosen.predictions, threshold=chosen.decision.threshold)
    history = dict(run.metric_history([training.classifier.monitor])[training.classifier.monitor])
    trained = Trained(
        run_id=run.run_id,
        see_it=run.see_it,
        best_epoch=best_epoch,
        epochs=max(trainer.current_epoch, *history),  # spawned processes count their own
        predictions=chosen.predictions,
        metrics=metrics,
        operating={
            "threshold": chosen.decision.threshold,
            **{name: value for name, value in operating.items() if name not in OF_RANKS},
        },
        decision=chosen.decision,
        report=chosen.report,
        monitored=history.get(best_epoch, float("nan")),
    )
    record_result(run, trained, data)
    record_bundle(run, values, net, data, chosen, epoch=best_epoch)
    checkpoints.drop_previous(run.folder / "checkpoints")
    return trained


def _load_best(classifier: PneumoniaClassifier, path: Path) -> int:
    """Load the kept epoch's weights; returns its number, counted from 1."""
    checkpoints.verify(path)
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    classifier.load_state_dict(checkpoint["state_dict"])
    return int(checkpoint["epoch"]) + 1
