"""The input gate: is this an upright frontal chest film at all? A score, and a threshold from validation.

Films that a hospital takes look alike: two dark lungs, a bright middle. Probabilistic principal
component analysis (Tipping and Bishop, JRSS B 1999) of small, contrast-free thumbnails learns that
look; what is unlike it (a photograph, a film on its side, a hand) gets a high score.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from xray_pneumonia.evaluation.measures import Vector

Gray = npt.NDArray[np.uint8]
SIDE = 24  # pixels of a thumbnail
COMPONENTS = 32
PASSED = 0.99  # the share of validation films that the threshold lets through
MOST = 2000  # films to learn from


@dataclass(frozen=True)
class Gate:
    """What films look like: `mean` (D,), `axes` (K, D), their variances (K,), `noise`, and the threshold."""

    mean: Vector
    axes: Vector
    variances: Vector
    noise: float
    threshold: float

    def scores(self, images: Gray) -> Vector:
        """Score (N, H, W) images: squared distance from the films in standard deviations, per dimension, (N,)."""
        apart = thumbnails(images) - self.mean
        along = apart @ self.axes.T
        outside = (apart**2).sum(axis=1) - (along**2).sum(axis=1)
        return np.asarray(((along**2 / self.variances).sum(axis=1) + outside / self.noise) / apart.shape[1])

    def passes(self, images: Gray) -> npt.NDArray[np.bool_]:
        """Tell which of (N, H, W) images look like upright frontal chest films."""
        return self.scores(images) <= self.threshold


def fit_gate(films: Gray, validation: Gray) -> Gate:
    """Learn the look of films (N, H, W), and from validation films where to draw the line."""
    seen = thumbnails(films[np.linspace(0, len(films) - 1, min(MOST, len(films))).astype(int)])
    mean = seen.mean(axis=0)
    _, singular, axes = np.linalg.svd(seen - mean, full_matrices=False)
    spectrum = singular**2 / max(1, len(seen) - 1)
    kept = min(COMPONENTS, len(spectrum) - 1)
    noise = float(spectrum[kept:].sum() / (seen.shape[1] - kept)) + 1e-6
    free = Gate(mean, axes[:kept], spectrum[:kept] + 1e-6, noise, np.inf)
    threshold = float(np.quantile(free.scores(validation), PASSED))
    return Gate(mean, axes[:kept], spectrum[:kept] + 1e-6, noise, threshold)


def thumbnails(images: Gray) -> Vector:
    """Shrink (N, H, W) to (N, SIDE * SIDE) with mean 0 and deviation 1: brightness and contrast tell nothing."""
    small = [np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BOX), np.float64) for one in images]
    flat = np.reshape(small, (len(images), SIDE * SIDE))
    return np.asarray((flat - flat.mean(axis=1, keepdims=True)) / (flat.std(axis=1, keepdims=True) + 1.0))


def strangers(films: Gray, *, seed: int) -> dict[str, Gray]:
    """Make from films (N, H, W), and from nothing, what the gate should stop; each kind has N images.

    Other parts of the body are imitated by what a film holds beside the chest: one magnified corner.
    """
    rng = np.random.default_rng(seed)
    count, side = len(films), films.shape[1]
    kinds: dict[str, Callable[[], Gray]] = {
        "on its side": lambda: np.ascontiguousarray(np.rot90(films, axes=(1, 2))),
        "upside down": lambda: np.ascontiguousarray(films[:, ::-1, ::-1]),
        "inverted": lambda: 255 - films,
        "nearly blank": lambda: np.clip(rng.normal(128, 4, films.shape), 0, 255).astype(np.uint8),
        "noise": lambda: rng.integers(0, 256, films.shape).astype(np.uint8),
        "photograph": lambda: np.stack([_scene(rng, side) for _ in range(count)]),
        "limb": lambda: np.stack([_limb(rng, side) for _ in range(count)]),
        "one corner": lambda: np.stack([_corner(film) for film in films]),
    }
    return {name: make() for name, make in kinds.items()}


def _scene(rng: np.random.Generator, side: int) -> Gray:
    """Draw what photographs have in common: a 1/f spectrum (Field, JOSA A 1987) and a light side."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = 1
    waves = np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) / frequency**1.2).real
    waves += np.linspace(0, rng.normal(0, 2) * waves.std(), side)[:, None]
    return _stretched(waves)


def _limb(rng: np.random.Generator, side: int) -> Gray:
    """Draw two bright bones in soft tissue on a dark ground, at any angle."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    angle = rng.uniform(0, np.pi)
    across = x * np.cos(angle) + y * np.sin(angle)
    picture = np.exp(-((across / 0.45) ** 4))
    for place in rng.normal([-0.17, 0.17], 0.03):
        picture += 1.2 * np.exp(-(((across - place) / 0.09) ** 2))
    return _stretched(picture + rng.normal(0, 0.03, picture.shape))


def _corner(film: Gray) -> Gray:
    side = len(film)
    return np.asarray(Image.fromarray(film[: side // 3, : side // 3]).resize((side, side)), np.uint8)


def _stretched(picture: Vector) -> Gray:
    low, high = picture.min(), picture.max()
    return ((picture - low) / (high - low + 1e-9) * 255).astype(np.uint8)
