"""The reader: a trained model with all that belongs to its answer; whoever asks a model, asks a reader."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit
from torch import nn

from xray_pneumonia.evaluation.abstention import Band, stored_band
from xray_pneumonia.evaluation.input_gate import Gate
from xray_pneumonia.inference.bundle import Card

Gray = npt.NDArray[np.uint8]
Vector = npt.NDArray[np.float64]
Engine = Callable[[Gray], Vector]  # (N, S, S) uint8 -> calibrated logits (N,)
UNCERTAIN, STRANGE = "uncertain", "no frontal chest film"  # why an image is not answered


@dataclass(frozen=True)
class Reader:
    """A trained model, or several that answer as one.

    Args:
        name: what it was called when it was loaded.
        card: its classes, image size, calibration, operating point and band.
        gate: tells what is no upright frontal chest film; none in a model without one.
        net: raw pixels (B, 1, S, S) -> its own logits, for heat maps; of several models the first; none where
            only a graph is at hand.
        engine: what computes.
    """

    name: str
    card: Card
    gate: Gate | None
    net: nn.Module | None
    engine: Engine

    def __call__(self, pixels: Gray) -> Vector:
        """Give the calibrated probability of PNEUMONIA.

        Args:
            pixels: (N, S, S) uint8, S the card's image size.

        Returns:
            (N,), 64-bit.

        Raises:
            ValueError: the pixels have another shape or type.
        """
        side = self.card.image_size
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (side, side):
            raise ValueError(f"pixels: {pixels.dtype} {pixels.shape}; {self.name} reads uint8 (N, {side}, {side})")
        return np.asarray(expit(self.engine(pixels)), np.float64) if len(pixels) else np.empty(0)

    @property
    def band(self) -> Band:
        """Where it does not answer; closed at the operating point in a model without a band."""
        return stored_band(self.card.band, threshold=self.card.operating_point)

    def read(self, pixels: Gray) -> pd.DataFrame:
        """Answer images.

        Args:
            pixels: (N, S, S) uint8.

        Returns:
            One row for each: `probability` (calibrated), `label` (a class name, by the operating point),
            `operating_point`, `answer` ("normal", "pneumonia" or "look closer"), `abstention` (why the
            answer is "look closer", else empty) and `gate` (above 1 for what is no upright frontal chest
            film; NaN without a gate).

        Raises:
            ValueError: the pixels have another shape or type.
        """
        probability = self(pixels)
        strangeness = self.gate.scores(pixels) if self.gate and len(pixels) else np.full(len(pixels), np.nan)
        answer = self.band.answer(probability)
        why = np.where(answer == "look closer", UNCERTAIN, "")
        strange = strangeness > 1
        return pd.DataFrame(
            {
                "probability": probability,
                "label": np.asarray(self.card.class_names)[(probability >= self.card.operating_point).astype(int)],
                "operating_point": self.card.operating_point,
                "answer": np.where(strange, "look closer", answer),
                "abstention": np.where(strange, STRANGE, why),
                "gate": strangeness,
            }
        )
