"""Defines `TrainedModel`: gray images -> calibrated probabilities of PNEUMONIA, class names and abstentions."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from scipy.special import expit
from torch import Tensor, nn

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.abstention import Band, stored_band
from xray_pneumonia.evaluation.assessment import Decision
from xray_pneumonia.evaluation.calibration import Calibration
from xray_pneumonia.evaluation.input_gate import FeatureGate, Gate, ThumbnailGate, join_gates
from xray_pneumonia.evaluation.quality import InputCheck
from xray_pneumonia.inference.bundle import Card
from xray_pneumonia.models.features import FeatureNet
from xray_pneumonia.net_lock import lock_of
from xray_pneumonia.types import Gray, Vector

Graph = Callable[[Gray], Vector]  # (N, S, S) uint8 -> calibrated logits and distances (N, 2)
UNCERTAIN = "uncertain"  # reason of an abstention, beside those of the gate
CPU_BATCH, GPU_BATCH = 16, 512  # images at once: what fits the caches of a processor; what fills a GPU


@dataclass(frozen=True)
class TrainedModel:
    """A trained net, or an ensemble of them, with all that belongs to its answers.

    Args:
        name: what it was called when it was loaded.
        card: classes, image size, calibration, operating point, band, evidence.
        gate: recognises films of the kind that it learned from; None in a model without one.
        net: raw pixels (B, 1, S, S) -> uncalibrated logits (B,), for heat maps too; in an ensemble the first member's;
            None where only an exported graph is there.
        members: of an ensemble, which averages their evidence and calibrates the mean.
        graph: computes instead of the nets.
        folder: that it was read from.
    """

    name: str
    card: Card
    gate: Gate | None = None
    net: nn.Module | None = None
    members: tuple["TrainedModel", ...] = ()
    graph: Graph | None = None
    folder: Path | None = None

    @property
    def calibration(self) -> Calibration:
        """What maps `uncalibrated_logits` to `logits`."""
        return Calibration(self.card.temperature, self.card.bias, self.card.prevalence)

    @property
    def band(self) -> Band:
        """The probabilities at which it abstains; closed at the operating point in a model without a band."""
        return stored_band(self.card.band, threshold=self.card.operating_point)

    @property
    def decision(self) -> Decision:
        """Calibration, operating point and band."""
        card = self.card
        return Decision(self.calibration, card.operating_point, card.operating_point_policy, self.band, card.promise)

    def with_decision(self, decision: Decision) -> "TrainedModel":
        """Copy the model with another calibration, operating point and band."""
        return replace(self, card=self.card.with_decision(decision))

    def at(self, prevalence: float | None, *, cost: float | None = None) -> "TrainedModel":
        """Show probabilities where a share `prevalence` of the patients is ill; see `Decision.at`.

        Raises:
            InputError: the model names no prevalence of its own, or there is a cost without a prevalence.
        """
        if prevalence is None:
            if cost is not None:
                raise InputError(f"cost={cost:g}: needs prevalence=P, the share of ill patients where it is to be used")
            return self
        moved, graph = self.with_decision(self.decision.at(prevalence, cost=cost)), self.graph
        if graph is None:
            return moved
        step = moved.calibration.offset - self.calibration.offset
        return replace(moved, graph=lambda images: graph(images) + np.array([step, 0.0]))

    def uncalibrated_logits(self, images: Gray, *, progress: str = "") -> Vector:
        """Compute (N,) of what `calibration` is for: the net's logits, or the mean of the members' evidence.

        Raises:
            ValueError: the images are not (N, S, S) uint8, S the card's image size, or there is no net.
        """
        return self.measure(images, progress=progress)[0]

    def measure(self, images: Gray, *, progress: str = "") -> tuple[Vector, Vector]:
        """Compute in one pass what `uncalibrated_logits` does, and distances (N,) for the gate; 0 if it needs none."""
        self._require_readable(images)
        if self.members:
            found = [member.measure(images, progress=progress) for member in self.members]
            rows = [one.calibration.evidence(logits) for one, (logits, _) in zip(self.members, found, strict=True)]
            return np.mean(rows, axis=0), np.mean([distances for _, distances in found], axis=0)
        if not isinstance(self.gate, FeatureGate):
            return run_net(self.require_net(), images, progress=progress), np.zeros(len(images))
        logits, features = run_features(self._feature_net, images, act=distances_by_torch(self.gate), progress=progress)
        return logits, features[:, 0]

    @cached_property
    def _feature_net(self) -> FeatureNet:
        return FeatureNet(self.require_net(), side=self.card.image_size)

    def calibrated(self, images: Gray) -> Vector:
        """Compute calibrated logits and distances, (N, 2), of (N, S, S) uint8 images."""
        self._require_readable(images)
        if self.graph is not None:
            return self.graph(images)
        logits, distances = self.measure(images)
        return np.stack([self.calibration.logits(logits), distances], axis=1)

    def logits(self, images: Gray) -> Vector:
        """Compute calibrated logits (N,) of (N, S, S) uint8 images."""
        return self.calibrated(images)[:, 0]

    @property
    def input_check(self) -> InputCheck | None:
        """The gate, with what computes distances for it; None in a model without a gate."""
        if isinstance(self.gate, FeatureGate):
            return InputCheck(self.gate, lambda images: self.calibrated(images)[:, 1])
        return InputCheck(self.gate) if self.gate else None

    def probabilities(self, images: Gray) -> Vector:
        """Compute calibrated probabilities of PNEUMONIA (N,) of (N, S, S) uint8 images."""
        return np.asarray(expit(self.logits(images)), np.float64)

    def decide(self, images: Gray) -> pd.DataFrame:
        """Classify (N, S, S) uint8 images, or abstain.

        Returns:
            One row for each: `probability` (at the card's prevalence), `label` (a class name, by the operating point),
            `operating_point`, `prevalence` (None in models that name none), `answer` ("normal", "pneumonia" or the
            model's own classes; or "look closer"), `abstention` (why the answer is "look closer", else empty) and
            `gate` (above 1 for films of another kind than it learned from; NaN without a gate).

        Raises:
            ValueError: the images have another shape or type.
        """
        logits, distances = self.calibrated(images).T
        probability = np.asarray(expit(logits), np.float64)
        nothing = np.full(len(images), np.nan), np.full(len(images), "")
        score, stopped = self.gate.judge(images, distances) if self.gate else nothing
        answer = np.array([self.card.answers.get(one, one) for one in self.band.answer(probability)], dtype=object)
        reason = np.where(answer == "look closer", UNCERTAIN, "")
        return pd.DataFrame(
            {
                "probability": probability,
                "label": np.asarray(self.card.class_names)[(probability >= self.card.operating_point).astype(int)],
                "operating_point": self.card.operating_point,
                "prevalence": self.card.prevalence,
                "answer": np.where(stopped != "", "look closer", answer),
                "abstention": np.where(stopped != "", stopped, reason),
                "gate": score,
            }
        )

    def require_net(self) -> nn.Module:
        """Give the net, for heat maps too.

        Raises:
            InputError: its net is code of others, which the command does not name.
            ValueError: only an exported graph is there.
        """
        if self.net is None and self.card.extensions:
            names = ",".join(self.card.extensions)
            raise InputError(f"{self.name}: needs the net itself, code of your own; add extensions=[{names}]")
        if self.net is None:
            raise ValueError(f"{self.name}: is an exported graph, without a net")
        return self.net

    def _require_readable(self, images: Gray) -> None:
        side = self.card.image_size
        if images.dtype != np.uint8 or images.shape[1:] != (side, side):
            raise ValueError(f"images: {images.dtype} {images.shape}; {self.name} reads uint8 (N, {side}, {side})")


def ensemble_of(
    members: Sequence[TrainedModel],
    card: Card,
    *,
    name: str,
    gate: Gate | None = None,
    folder: Path | None = None,
) -> TrainedModel:
    """Join models into one that averages their evidence and their distances; heat maps are the first one's.

    Without a `gate` of its own it gets its members' joined one, or the first member's where they measure no distances.
    """
    gates = [member.gate for member in members if isinstance(member.gate, FeatureGate)]
    if gate is None and len(gates) == len(members):
        gate = join_gates(gates)
    elif gate is None:
        gate = next((member.gate for member in members if isinstance(member.gate, ThumbnailGate)), None)
    return TrainedModel(name, card, gate, members[0].net, tuple(members), folder=folder)


def run_net(net: nn.Module, images: Gray, *, progress: str = "") -> Vector:
    """Run (N, H, W) uint8 images through a net, on its device; returns logits (N,), 64-bit."""
    return _run(net, images, _numbers, progress)


def run_features(
    net: FeatureNet, images: Gray, *, act: Callable[[Vector], Vector] | None = None, progress: str = ""
) -> tuple[Vector, Vector]:
    """Run (N, H, W) images through a net; returns logits (N,) and features (N, D), or what `act` makes of them."""

    def join(found: tuple[Tensor, Tensor]) -> Vector:
        logits, features = map(_numbers, found)
        return np.column_stack([logits, features if act is None else act(features)])

    rows = _run(net, images, join, progress).reshape(len(images), 1 + (net.width if act is None else 1))
    return rows[:, 0], rows[:, 1:]


def distances_by_torch(gate: FeatureGate) -> Callable[[Vector], Vector]:
    """Give a gate's `distances`, multiplied by torch: NumPy's BLAS threads would busy-wait and slow the net."""

    def product(features: Vector, matrix: Vector) -> Vector:
        return (torch.from_numpy(features) @ torch.from_numpy(matrix)).numpy()

    return partial(gate.distances, product=product)


def _run(net: nn.Module, images: Gray, act: Callable[[Any], Vector], progress: str) -> Vector:
    net.eval()
    device = next(net.parameters()).device

    def run(batch: Gray) -> Vector:
        pixels = torch.from_numpy(np.array(batch)).to(device)  # a copy: torch takes no read-only array
        with torch.inference_mode(), lock_of(net.net if isinstance(net, FeatureNet) else net):
            return act(net(pixels[:, None]))

    return in_batches(run, images, CPU_BATCH if device.type == "cpu" else GPU_BATCH, progress=progress)


def _numbers(tensor: Tensor) -> Vector:
    return np.asarray(tensor.double().cpu().numpy(), np.float64)


def in_batches(run: Callable[[Gray], Vector], images: Gray, size: int, *, progress: str = "") -> Vector:
    """Apply a function to batches of one size, of which the last may be smaller, and join what it returns."""
    quiet = not (progress and sys.stderr.isatty())
    starts = track(range(0, len(images), size), progress, console=Console(stderr=True), disable=quiet, transient=True)
    rows = [run(images[start : start + size]) for start in starts]
    return np.concatenate(rows) if rows else np.empty(0)
