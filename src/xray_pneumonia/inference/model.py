"""Defines `TrainedModel`: gray images -> calibrated probabilities of PNEUMONIA, class names and abstentions."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from scipy.special import expit
from torch import nn

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.abstention import Band, stored_band
from xray_pneumonia.evaluation.assessment import Decision
from xray_pneumonia.evaluation.calibration import Calibration
from xray_pneumonia.evaluation.input_gate import Gate
from xray_pneumonia.inference.bundle import Card
from xray_pneumonia.types import Gray, Vector

Graph = Callable[[Gray], Vector]  # (N, S, S) uint8 -> calibrated logits (N,)
UNCERTAIN, STRANGE = "uncertain", "no frontal chest film"  # reasons of an abstention
CPU_BATCH, GPU_BATCH = 16, 512  # images at once: what fits the caches of a processor; what fills a GPU


@dataclass(frozen=True)
class TrainedModel:
    """A trained net, or an ensemble of them, with all that belongs to its answers.

    Args:
        name: what it was called when it was loaded.
        card: classes, image size, calibration, operating point, band, evidence.
        gate: recognises upright frontal chest films; None in a model without one.
        net: raw pixels (B, 1, S, S) -> uncalibrated logits (B,), for heat maps too; in an ensemble the first member's;
            None where only an exported graph is there.
        members: of an ensemble, which averages their calibrated logits and calibrates the mean.
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
        return Calibration(self.card.temperature, self.card.bias)

    @property
    def band(self) -> Band:
        """The probabilities at which it abstains; closed at the operating point in a model without a band."""
        return stored_band(self.card.band, threshold=self.card.operating_point)

    @property
    def decision(self) -> Decision:
        """Calibration, operating point and band."""
        return Decision(self.calibration, self.card.operating_point, self.card.operating_point_policy, self.band)

    def with_decision(self, decision: Decision) -> "TrainedModel":
        """Copy the model with another calibration, operating point and band."""
        return replace(self, card=self.card.with_decision(decision))

    def uncalibrated_logits(self, images: Gray, *, progress: str = "") -> Vector:
        """Compute what `calibration` is for: the net's logits, or the mean of the members' calibrated ones.

        Args:
            images: (N, S, S) uint8, S the card's image size.
            progress: title of a progress bar on a terminal; empty for none.

        Returns:
            (N,), 64-bit.

        Raises:
            ValueError: the images have another shape or type, or there is no net.
        """
        self._require_readable(images)
        if self.members:
            rows = [member.logits(images, progress=progress) for member in self.members]
            return np.asarray(np.mean(rows, axis=0), np.float64)
        return run_net(self.require_net(), images, progress=progress)

    def logits(self, images: Gray, *, progress: str = "") -> Vector:
        """Compute calibrated logits (N,) of (N, S, S) uint8 images."""
        self._require_readable(images)
        if self.graph is not None:
            return self.graph(images)
        return self.calibration.logits(self.uncalibrated_logits(images, progress=progress))

    def probabilities(self, images: Gray) -> Vector:
        """Compute calibrated probabilities of PNEUMONIA (N,) of (N, S, S) uint8 images."""
        return np.asarray(expit(self.logits(images)), np.float64)

    def decide(self, images: Gray) -> pd.DataFrame:
        """Classify (N, S, S) uint8 images, or abstain.

        Returns:
            One row for each: `probability` (calibrated), `label` (a class name, by the operating point),
            `operating_point`, `answer` ("normal", "pneumonia" or the model's own classes; or "look closer"),
            `abstention` (why the answer is "look closer", else empty) and `gate` (above 1 for what is no upright
            frontal chest film; NaN without a gate).

        Raises:
            ValueError: the images have another shape or type.
        """
        probability = self.probabilities(images)
        score = self.gate.scores(images) if self.gate and len(images) else np.full(len(images), np.nan)
        answer = np.array([self.card.answers.get(one, one) for one in self.band.answer(probability)], dtype=object)
        reason = np.where(answer == "look closer", UNCERTAIN, "")
        return pd.DataFrame(
            {
                "probability": probability,
                "label": np.asarray(self.card.class_names)[(probability >= self.card.operating_point).astype(int)],
                "operating_point": self.card.operating_point,
                "answer": np.where(score > 1, "look closer", answer),
                "abstention": np.where(score > 1, STRANGE, reason),
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


def ensemble_of(members: Sequence[TrainedModel], card: Card, *, name: str, folder: Path | None = None) -> TrainedModel:
    """Join models into one that averages their calibrated logits; the gate and heat maps are the first one's."""
    return TrainedModel(name, card, members[0].gate, members[0].net, tuple(members), folder=folder)


def run_net(net: nn.Module, images: Gray, *, progress: str = "") -> Vector:
    """Run (N, H, W) images through a net, on its device; returns logits (N,), 64-bit.

    Args:
        net: raw pixels (B, 1, H, W) -> logits (B,).
        images: uint8.
        progress: title of a progress bar on a terminal; empty for none.
    """
    net.eval()
    device = next(net.parameters()).device

    def run(batch: Gray) -> Vector:
        pixels = torch.from_numpy(np.array(batch)).to(device)  # a copy: torch takes no read-only array
        with torch.inference_mode():
            return np.asarray(net(pixels[:, None]).double().cpu().numpy(), np.float64)

    return in_batches(run, images, CPU_BATCH if device.type == "cpu" else GPU_BATCH, progress=progress)


def in_batches(run: Graph, images: Gray, size: int, *, progress: str = "") -> Vector:
    """Apply a function to batches of one size, of which the last may be smaller, and join what it returns."""
    quiet = not (progress and sys.stderr.isatty())
    starts = track(range(0, len(images), size), progress, console=Console(stderr=True), disable=quiet, transient=True)
    return np.concatenate([np.empty(0), *(run(images[start : start + size]) for start in starts)])
