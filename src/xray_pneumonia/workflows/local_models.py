"""Fits nets to a hospital's own films, starting from a trained one: as it is, a new last layer, or all weights."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytorch_lightning as pl
import torch
from torch import nn

from xray_pneumonia.config import build
from xray_pneumonia.data.datamodule import XRayDataModule
from xray_pneumonia.evaluation.adaptation import Reading
from xray_pneumonia.evaluation.input_gate import Gate, fit_feature_gate, fit_thumbnail_gate
from xray_pneumonia.inference.model import run_features
from xray_pneumonia.models.features import FeatureNet
from xray_pneumonia.models.probe import Probe
from xray_pneumonia.training.classifier import PneumoniaClassifier
from xray_pneumonia.training.finetuning import fit_linear, freeze
from xray_pneumonia.training.losses import require_loss
from xray_pneumonia.training.trainer import TrainerSettings, build_trainer, fit
from xray_pneumonia.types import Gray, Vector

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Learned:
    """A net, its config, and what it makes of all films: logits (N,), features (N, D); D is 0 without maps."""

    net: nn.Module
    node: dict[str, Any]
    logits: Vector
    features: Vector


Learn = Callable[[Rows], Learned]  # from the films of these rows


def read_all(net: nn.Module, node: Mapping[str, Any], images: Gray) -> Learned:
    """Have a net read all films (N, H, W)."""
    logits, features = run_features(FeatureNet(net, side=images.shape[1]), images)
    return Learned(net, dict(node), logits, features)


def learn_head(start: Learned, label: Vector, side: int, rows: Rows) -> Learned:
    """Fit a new last layer on the features of all blocks; nothing below it changes."""
    weights, bias = fit_linear(start.features[rows], label[rows])
    node = {"_target_": "xray_pneumonia.models.probe.Probe", "net": start.node, "features": len(weights)}
    net = Probe(net=start.net, features=len(weights), image_size=side).to(next(start.net.parameters()).device)
    with torch.no_grad():
        net.last.weight.copy_(torch.from_numpy(weights))
        net.last.bias.fill_(bias)
    net.eval().requires_grad_(False)
    return Learned(net, node | {"image_size": side}, start.features @ weights + bias, start.features)


def learn_all(
    start: Learned, data: XRayDataModule, values: Mapping[str, Any], images: Gray, records: Rows, rows: Rows
) -> Learned:
    """Train a copy of the net for all epochs, as `trainer`, `optimizer`, `scheduler`, `loss` and `augmentation` say.

    Row i of `images`, all films, is the record `records[i]` of `data`.
    """
    pl.seed_everything(values["seed"], workers=True, verbose=False)
    settings: TrainerSettings = build(values["trainer"])
    net = copy.deepcopy(start.net).requires_grad_(True).train()
    freeze(net, settings.freeze)
    here = np.isin(np.arange(len(data.records)), records[rows])
    data.records = data.records.assign(split=np.where(here, "train", ""))
    classifier = PneumoniaClassifier(
        net,
        loss=require_loss(build(values["loss"], data.class_counts(), key="loss")),
        optimizer=partial(build, values["optimizer"], key="optimizer"),
        scheduler=partial(build, values["scheduler"], key="scheduler"),
        monitor="val/loss",
        mode="min",
        backbone_lr=settings.backbone_lr,
    )
    with TemporaryDirectory() as folder:
        trainer = build_trainer(replace(settings, limit_val_batches=0), callbacks=[], loggers=[], folder=Path(folder))
        fit(trainer, classifier, data, start=None)
    return read_all(net.eval().requires_grad_(False), start.node, images)


def reading(learn: Learn, films: pd.DataFrame, images: Gray) -> Reading:
    """Make what reads all films with a net and a gate that were fitted without some folds, once for each choice."""

    @cache
    def read(left_out: frozenset[int]) -> pd.DataFrame:
        rows = np.flatnonzero(~films["fold"].isin(left_out))
        learned = learn(rows)
        distance = np.zeros(len(films))
        if learned.features.shape[1]:
            distance = fit_feature_gate(images[rows], learned.features[rows]).distances(learned.features)
        return pd.DataFrame({"logit": learned.logits, "distance": distance}, index=films.index)

    return read


def fit_gate(learned: Learned, images: Gray, limits: Vector, *, before: Gate | None) -> Gate:
    """Fit a gate to all films, with limits from cross-validation; the rule for upright films is the old model's."""
    if not learned.features.shape[1]:
        return fit_thumbnail_gate(images, images)
    gate = fit_feature_gate(images, learned.features)
    return replace(gate, limits=limits, direction=gate.direction if before is None else before.direction)


def upright(images: Gray, gate: Gate | None) -> Vector:
    """Score (N,) how little films stand upright, by the rule of the model before; 0 without one."""
    if gate is None:
        return np.zeros(len(images))
    return gate.anomaly(images, np.zeros(len(images)))[:, 1]


def has_maps(learned: Learned) -> bool:
    """Tell whether a net has features, which a new last layer needs."""
    return bool(learned.features.size)
