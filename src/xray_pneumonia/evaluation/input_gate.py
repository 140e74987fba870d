"""The input gate: is this an upright frontal chest film at all? A score, and a threshold from validation.

Films that a hospital takes look alike: two dark lungs, a bright middle. Two rules learn that look from
small, contrast-free thumbnails. Probabilistic principal component analysis (Tipping and Bishop, JRSS B
1999) knows what a film can look like and finds all else strange: a photograph, a hand. A ridge
regression tells films from the same films turned and inverted, which the first rule finds familiar.
"""

import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from xray_pneumonia.errors import InputError
from xray_pneumonia.evaluation.metrics import Vector

Gray = npt.NDArray[np.uint8]
SIDE = 16  # pixels of a thumbnail
COMPONENTS = 32
RIDGE = 1e-2  # of the mean variance
PASSED = 0.995  # the share of validation films that each rule lets through
MOST = 2000  # films to learn from
MOST_BYTES = 2**24  # of a file, and of what is packed in it


@dataclass(frozen=True)
class Gate:
    """What films look like.

    `mean` (D,), `axes` (K, D), their `variances` (K,) and `noise` (1,) of the first rule; `direction`
    (D + 1,) of the second; `limits` (2,) of both.
    """

    mean: Vector
    axes: Vector
    variances: Vector
    noise: Vector
    direction: Vector
    limits: Vector

    def scores(self, images: Gray) -> Vector:
        """Score (N, H, W) images: (N,), above 1 for what is no upright frontal chest film."""
        return np.asarray((self.strangeness(images) / self.limits).max(axis=1))

    def strangeness(self, images: Gray) -> Vector:
        """Give both rules' raw scores, (N, 2); the higher, the stranger."""
        return np.reshape([self._rules(small) for small in thumbnails(images)], (len(images), 2))

    def _rules(self, small: Vector) -> tuple[float, float]:
        """Score one thumbnail (D,): products of many at once would round by what is beside it."""
        apart = small - self.mean
        along = self.axes @ apart
        outside = apart @ apart - along @ along
        look = ((along**2 / self.variances).sum() + outside / self.noise[0]) / len(apart)
        return look, max(1 - small @ self.direction[:-1] - self.direction[-1], 0.0)

    def passes(self, images: Gray) -> npt.NDArray[np.bool_]:
        """Tell which of (N, H, W) images look like upright frontal chest films."""
        return self.scores(images) <= 1

    def write(self, path: Path) -> None:
        """Write plain arrays."""
        np.savez(path, **asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote; nothing is unpickled.

        Raises:
            InputError: the file is missing or holds something else.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                if sum(one.file_size for one in archive.infolist()) > MOST_BYTES:
                    raise ValueError(f"it unpacks to more than {MOST_BYTES} bytes")
            with np.load(path, allow_pickle=False) as arrays:
                gate = cls(**{name: arrays[name] for name in cls.__dataclass_fields__})
            gate._require_whole()
        except Exception as error:  # ZIP, its compressions and NumPy have one each
            raise InputError(f"{path}: is no gate: {error}") from error
        return gate

    def _require_whole(self) -> None:
        shown, kept = SIDE * SIDE, len(self.variances)
        shapes = {"mean": (shown,), "axes": (kept, shown), "variances": (kept,), "noise": (1,)}
        for name, shape in (shapes | {"direction": (shown + 1,), "limits": (2,)}).items():
            array = getattr(self, name)
            if array.dtype != np.float64 or array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"{name}: {array.dtype} {array.shape}, should be finite numbers in 64 bits, {shape}")
        if not all((getattr(self, name) > 0).all() for name in ("variances", "noise", "limits")):
            raise ValueError("variances, noise and limits should be above 0")


def fit_gate(films: Gray, validation: Gray) -> Gate:
    """Learn the look of films (N, H, W), and from validation films where to draw the lines."""
    films = films[np.linspace(0, len(films) - 1, min(MOST, len(films))).astype(int)]
    seen = thumbnails(films)
    mean = seen.mean(axis=0)
    _, singular, axes = np.linalg.svd(seen - mean, full_matrices=False)
    spectrum = singular**2 / max(1, len(seen) - 1)
    kept = min(COMPONENTS, len(spectrum) - 1)
    noise = np.array([spectrum[kept:].sum() / (seen.shape[1] - kept) + 1e-6])
    free = Gate(mean, axes[:kept], spectrum[:kept] + 1e-6, noise, _upright(films, seen), np.ones(2))
    limits = np.maximum(np.quantile(free.strangeness(validation), PASSED, axis=0), 1e-6)
    return Gate(free.mean, free.axes, free.variances, free.noise, free.direction, limits)


def _upright(films: Gray, seen: Vector) -> Vector:
    """Fit a ridge regression to 1 for films and -1 for what was turned or inverted, (D + 1,)."""
    other = [np.rot90(films, turns, axes=(1, 2)) for turns in (1, 2, 3)]
    strange = [thumbnails(np.ascontiguousarray(turned)) for turned in other] + [-seen]
    rows = np.concatenate([seen, *strange])
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    weight = np.where(np.arange(len(rows)) < len(seen), 1.0, 1 / len(strange))[:, None]
    target = np.where(np.arange(len(rows)) < len(seen), 1.0, -1.0)
    square = rows.T @ (rows * weight)
    square += RIDGE * np.trace(square) / len(square) * np.eye(len(square))
    return np.asarray(np.linalg.solve(square, (rows * weight).T @ target))


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
    return np.asarray((picture - low) / (high - low + 1e-9) * 255, np.uint8)
