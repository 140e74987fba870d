"""Scores how little an image looks like the X-rays that a model learned from.

Two rules, whose limits come from validation. `FeatureGate` measures the Mahalanobis distance of the net's own features,
the channel means of its stem and blocks, from those of the training images (Lee et al., NeurIPS 2018), with the
covariance of Ledoit and Wolf (2004). For nets without maps `ThumbnailGate` models contrast-free thumbnails by
probabilistic principal components (Tipping and Bishop, JRSS B 1999). In both a ridge regression tells X-rays from the
same X-rays turned and inverted.
"""

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.drift import Home
from xray_pneumonia.types import Gray, Vector

SIDE = 16  # pixels of a thumbnail
COMPONENTS = 32
RIDGE = 1e-2  # of the mean variance
MOST = 2000  # images that thumbnails are learned from
MOST_BYTES = 2**24  # of a file, and of what is packed in it
STRANGE, UNLIKE = "no frontal chest film", "unlike the films it learned from"  # reasons of an abstention


@dataclass(frozen=True, kw_only=True)
class Gate(ABC):
    """Two rules of what a model's X-rays look like; the second tells upright films from turned and inverted ones.

    `direction` (SIDE * SIDE + 1,) belongs to the second rule; `limits` (2,) are those of the first and the second;
    `home` describes the validation films, None in files of version 0.1.0.
    """

    direction: Vector
    limits: Vector
    home: Home | None = None
    passed: ClassVar[tuple[float, float]]  # the share of validation images that each rule lets through
    reasons: ClassVar[tuple[str, str]]  # in words, for what each rule stops
    positive: ClassVar[tuple[str, ...]] = ("limits",)

    @abstractmethod
    def anomaly(self, images: Gray, distances: Vector) -> Vector:
        """Compute both rules' raw scores, (N, 2), of images (N, H, W) and their distances (N,); high is unlikely."""

    def judge(self, images: Gray, distances: Vector) -> tuple[Vector, npt.NDArray[np.str_]]:
        """Score (N, H, W) images, (N,), above 1 for what is stopped, and word why, (N,), empty for what passes."""
        ratios = self.anomaly(images, distances) / self.limits
        first, second = self.reasons
        return ratios.max(axis=1), np.where(ratios[:, 1] > 1, second, np.where(ratios[:, 0] > 1, first, ""))

    def fitted(self, validation: Gray, distances: Vector) -> Self:
        """Copy the gate with the limits that validation images (N, H, W) give."""
        scores = self.anomaly(validation, distances)
        limits = [np.quantile(rule, share) for rule, share in zip(scores.T, self.passed, strict=True)]
        return replace(self, limits=np.maximum(limits, 1e-6))

    def write(self, path: Path) -> None:
        """Write plain arrays."""
        known = {} if self.home is None else asdict(self.home)
        home = {f"home_{name}": value for name, value in known.items() if value is not None}
        np.savez(path, **{one.name: getattr(self, one.name) for one in fields(self) if one.name != "home"}, **home)

    def require_whole(self) -> None:
        """Refuse parts that do not fit each other, or would let everything through.

        Raises:
            ValueError: there are such parts.
        """
        for name, (shape, kind) in self._shapes().items():
            array = getattr(self, name)
            if array.dtype != kind or array.shape != shape or not np.isfinite(array).all():
                raise ValueError(
                    f"{name}: {array.dtype} {array.shape}, should be finite numbers, {kind.__name__} {shape}"
                )
        if not all((getattr(self, name) > 0).all() for name in self.positive):
            raise ValueError(f"{', '.join(self.positive)} should be above 0")
        if self.home is not None:
            self.home.require_whole()

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        return {"direction": ((SIDE * SIDE + 1,), np.float64), "limits": ((2,), np.float64)}


def _leaning(small: Vector, direction: Vector) -> float:
    """Score how little a thumbnail (SIDE * SIDE,) stands upright.

    One at a time: products of many at once would round differently for different batches.
    """
    return float(max(1 - small @ direction[:-1] - direction[-1], 0.0))


@dataclass(frozen=True, kw_only=True)
class FeatureGate(Gate):
    """Measures the distance of a net's features from those of the training images.

    `centre` (D,) and `whitening` (D (D + 1) / 2,), the rows of a lower triangle in 32 bits, map features to what has
    mean 0 and covariance 1. An ensemble's gate has none, D is 0: it takes the mean of its members' distances.
    """

    centre: Vector
    whitening: npt.NDArray[np.float32]
    passed: ClassVar = (0.98, 0.995)
    reasons: ClassVar = (UNLIKE, STRANGE)

    @cached_property
    def matrix(self) -> Vector:
        """The triangle (D, D) in 64 bits."""
        square = np.zeros((len(self.centre), len(self.centre)))
        square[np.tril_indices(len(square))] = self.whitening
        return square

    def distances(self, features: Vector, *, product: Callable[[Vector, Vector], Vector] = np.matmul) -> Vector:
        """Compute the squared Mahalanobis distances (N,) of features (N, D); `product` multiplies matrices."""
        return np.asarray((product(features - self.centre, self.matrix) ** 2).sum(axis=1))

    def anomaly(self, images: Gray, distances: Vector) -> Vector:
        """Compute both rules' raw scores, (N, 2)."""
        leaning = [_leaning(small, self.direction) for small in thumbnails(images)]
        return np.stack([distances, np.asarray(leaning, np.float64)], axis=1)

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        shown = self.centre.size
        own = {"centre": ((shown,), np.float64), "whitening": ((shown * (shown + 1) // 2,), np.float32)}
        return super()._shapes() | own


@dataclass(frozen=True, kw_only=True)
class ThumbnailGate(Gate):
    """Models the look of thumbnails, for nets without maps.

    `mean` (D,), `axes` (K, D), their `variances` (K,) and `noise` (1,) are of the first rule.
    """

    mean: Vector
    axes: Vector
    variances: Vector
    noise: Vector
    passed: ClassVar = (0.995, 0.995)
    reasons: ClassVar = (STRANGE, STRANGE)
    positive: ClassVar = ("variances", "noise", "limits")

    def anomaly(self, images: Gray, distances: Vector | None = None) -> Vector:
        """Compute both rules' raw scores, (N, 2); distances are not used."""
        return np.reshape([self._rules(small) for small in thumbnails(images)], (len(images), 2))

    def _rules(self, small: Vector) -> tuple[float, float]:
        apart = small - self.mean
        along = np.einsum("kd,d->k", self.axes, apart)  # on one thread: those of BLAS busy-wait and slow the net
        outside = apart @ apart - along @ along
        look = ((along**2 / self.variances).sum() + outside / self.noise[0]) / len(apart)
        return look, _leaning(small, self.direction)

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        shown, kept = SIDE * SIDE, len(self.variances)
        own = {"mean": (shown,), "axes": (kept, shown), "variances": (kept,), "noise": (1,)}
        return super()._shapes() | {name: (shape, np.float64) for name, shape in own.items()}


def read_gate(path: Path) -> Gate:
    """Read what `Gate.write` wrote; nothing is unpickled.

    Raises:
        InputError: the file is missing or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(one.file_size for one in archive.infolist()) > MOST_BYTES:
                raise ValueError(f"it unpacks to more than {MOST_BYTES} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            kind = FeatureGate if "whitening" in arrays else ThumbnailGate
            own = {one.name: arrays[one.name] for one in fields(kind) if one.name != "home"}
            known = "home_scores" in arrays
            home = Home(**{one.name: arrays.get(f"home_{one.name}") for one in fields(Home)}) if known else None
        gate = kind(**own, home=home)
        gate.require_whole()
    except Exception as error:  # ZIP, its compressions and NumPy have one each
        raise InputError(f"{path}: is no gate: {error}") from error
    return gate


def fit_feature_gate(images: Gray, features: Vector) -> FeatureGate:
    """Fit both rules to training images (N, H, W) and the features (N, D) that a net has of them; limits are open."""
    from sklearn.covariance import LedoitWolf  # over a second to import

    centre, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.maximum(spread, 1e-3 * np.median(spread) or 1.0)  # of channels that hardly change
    covariance = LedoitWolf(assume_centered=True).fit((features - centre) / spread).covariance_
    precision = np.linalg.inv(covariance + 1e-6 * np.eye(len(covariance)))
    triangle = np.linalg.cholesky(precision) / spread[:, None]
    rows = triangle[np.tril_indices(len(triangle))].astype(np.float32)
    return FeatureGate(direction=_upright(images), limits=np.ones(2), centre=centre, whitening=rows)


def join_gates(gates: list[FeatureGate]) -> FeatureGate:
    """Make the gate of an ensemble from its members'; its limits are their mean until it is fitted itself."""
    limits = np.mean([gate.limits for gate in gates], axis=0)
    none = np.empty(0), np.empty(0, np.float32)
    return FeatureGate(direction=gates[0].direction, limits=limits, centre=none[0], whitening=none[1])


def fit_thumbnail_gate(images: Gray, validation: Gray) -> ThumbnailGate:
    """Fit both rules to training images (N, H, W), and their limits to validation images."""
    seen = thumbnails(_some(images))
    mean = seen.mean(axis=0)
    _, singular, axes = np.linalg.svd(seen - mean, full_matrices=False)
    spectrum = singular**2 / max(1, len(seen) - 1)
    kept = min(COMPONENTS, len(spectrum) - 1)
    noise = np.array([spectrum[kept:].sum() / (seen.shape[1] - kept) + 1e-6])
    rule = {"mean": mean, "axes": axes[:kept], "variances": spectrum[:kept] + 1e-6, "noise": noise}
    return ThumbnailGate(direction=_upright(images), limits=np.ones(2), **rule).fitted(validation, np.empty(0))


def _some(images: Gray) -> Gray:
    return np.asarray(images[np.linspace(0, len(images) - 1, min(MOST, len(images))).astype(int)])


def _upright(images: Gray) -> Vector:
    """Fit a ridge regression to 1 for X-rays and -1 for the same turned or inverted, (D + 1,)."""
    images = _some(images)
    seen, other = thumbnails(images), [np.rot90(images, turns, axes=(1, 2)) for turns in (1, 2, 3)]
    altered = [thumbnails(np.ascontiguousarray(turned)) for turned in other] + [-seen]
    rows = np.concatenate([seen, *altered])
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    weight = np.where(np.arange(len(rows)) < len(seen), 1.0, 1 / len(altered))[:, None]
    target = np.where(np.arange(len(rows)) < len(seen), 1.0, -1.0)
    square = rows.T @ (rows * weight)
    square += RIDGE * np.trace(square) / len(square) * np.eye(len(square))
    return np.asarray(np.linalg.solve(square, (rows * weight).T @ target))


def thumbnails(images: Gray) -> Vector:
    """Shrink (N, H, W) to (N, SIDE * SIDE) with mean 0 and deviation 1: brightness and contrast tell nothing."""
    small = [np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BOX), np.float64) for one in images]
    flat = np.reshape(small, (len(images), SIDE * SIDE))
    return np.asarray((flat - flat.mean(axis=1, keepdims=True)) / (flat.std(axis=1, keepdims=True) + 1.0))
