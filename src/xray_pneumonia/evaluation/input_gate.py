"""Checks inputs: scores how little an image looks like an upright frontal chest X-ray, and flags poor quality.

Chest X-rays look alike: two dark lungs, a bright middle. Two rules learn that look from small, contrast-free
thumbnails. Probabilistic principal component analysis (Tipping and Bishop, JRSS B 1999) models what an X-ray can look
like and finds a photograph or a hand unlikely. A ridge regression tells X-rays from the same X-rays turned and
inverted, which the first rule finds likely. The limits of both come from validation.
"""

import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from xray_pneumonia.errors import InputError
from xray_pneumonia.types import Gray, Vector

SIDE = 16  # pixels of a thumbnail
COMPONENTS = 32
RIDGE = 1e-2  # of the mean variance
PASSED = 0.995  # the share of validation images that each rule lets through
MOST = 2000  # images to learn from
MOST_BYTES = 2**24  # of a file, and of what is packed in it
LEAST_CONTRAST = 12.0  # gray levels of standard deviation; the public X-rays have 25 and more
LEAST_SHADES = 24  # different gray levels
FLAGS = {
    "outside_training_range": "looks like none of the frontal chest films the model learned from",
    "inverted": "looks like one once black and white are exchanged",
    "turned": "looks like one once it is turned",
    "low_information": "holds little contrast",
    "not_checked": "the model carries no input gate",
    "torn": "has a line at which its pixels do not continue; the file may be damaged",
    "contradictory_lut": "says in one tag that bright is dense, in another that dark is",
    "mirrored_back": "was stored mirrored, as its PatientOrientation says, and turned back",
    "turned_upright": "was stored turned, as its PatientOrientation says, and turned upright",
}


@dataclass(frozen=True)
class Gate:
    """A model of what upright frontal chest X-rays look like.

    `mean` (D,), `axes` (K, D), their `variances` (K,) and `noise` (1,) are of the first rule, `direction` (D + 1,) of
    the second, `limits` (2,) of both.
    """

    mean: Vector
    axes: Vector
    variances: Vector
    noise: Vector
    direction: Vector
    limits: Vector

    def scores(self, images: Gray) -> Vector:
        """Score (N, H, W) images: (N,), above 1 for what is no upright frontal chest X-ray."""
        return np.asarray((self.anomaly(images) / self.limits).max(axis=1))

    def anomaly(self, images: Gray) -> Vector:
        """Compute both rules' raw scores, (N, 2); higher is less likely."""
        return np.reshape([self._rules(small) for small in thumbnails(images)], (len(images), 2))

    def _rules(self, small: Vector) -> tuple[float, float]:
        """Score one thumbnail (D,): products of many at once would round differently for different batches."""
        apart = small - self.mean
        along = self.axes @ apart
        outside = apart @ apart - along @ along
        look = ((along**2 / self.variances).sum() + outside / self.noise[0]) / len(apart)
        return look, max(1 - small @ self.direction[:-1] - self.direction[-1], 0.0)

    def passes(self, images: Gray) -> npt.NDArray[np.bool_]:
        """Tell which of (N, H, W) images look like upright frontal chest X-rays."""
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


def fit_gate(images: Gray, validation: Gray) -> Gate:
    """Fit both rules to training images (N, H, W), and their limits to validation images."""
    images = images[np.linspace(0, len(images) - 1, min(MOST, len(images))).astype(int)]
    seen = thumbnails(images)
    mean = seen.mean(axis=0)
    _, singular, axes = np.linalg.svd(seen - mean, full_matrices=False)
    spectrum = singular**2 / max(1, len(seen) - 1)
    kept = min(COMPONENTS, len(spectrum) - 1)
    noise = np.array([spectrum[kept:].sum() / (seen.shape[1] - kept) + 1e-6])
    free = Gate(mean, axes[:kept], spectrum[:kept] + 1e-6, noise, _upright(images, seen), np.ones(2))
    limits = np.maximum(np.quantile(free.anomaly(validation), PASSED, axis=0), 1e-6)
    return replace(free, limits=limits)


def _upright(images: Gray, seen: Vector) -> Vector:
    """Fit a ridge regression to 1 for X-rays and -1 for the same turned or inverted, (D + 1,)."""
    other = [np.rot90(images, turns, axes=(1, 2)) for turns in (1, 2, 3)]
    altered = [thumbnails(np.ascontiguousarray(turned)) for turned in other] + [-seen]
    rows = np.concatenate([seen, *altered])
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    weight = np.where(np.arange(len(rows)) < len(seen), 1.0, 1 / len(altered))[:, None]
    target = np.where(np.arange(len(rows)) < len(seen), 1.0, -1.0)
    square = rows.T @ (rows * weight)
    square += RIDGE * np.trace(square) / len(square) * np.eye(len(square))
    return np.asarray(np.linalg.solve(square, (rows * weight).T @ target))


def quality_flags(images: Gray, scores: Vector, gate: Gate | None) -> list[list[str]]:
    """List for each of (N, H, W) images the names in `FLAGS` that hold; `scores` (N,) are those of the gate, if any."""
    flags = [["low_information"] * _low_contrast(image) for image in images]
    if gate is None:
        return [[*known, "not_checked"] for known in flags]
    for row in np.flatnonzero(scores > 1):
        flags[row] += ["outside_training_range", *_altered(images[row], gate)]
    return flags


def _altered(image: Gray, gate: Gate) -> list[str]:
    """Tell whether an image passes once it is inverted or turned."""
    turned = [np.ascontiguousarray(np.rot90(image, turns)) for turns in (1, 2, 3)]
    inverted, *others = gate.passes(np.stack([255 - image, *turned]))
    return ["inverted"] * bool(inverted) + ["turned"] * any(others)


def _low_contrast(image: Gray) -> bool:
    return bool(image.std() < LEAST_CONTRAST) or len(np.unique(image)) < LEAST_SHADES


def thumbnails(images: Gray) -> Vector:
    """Shrink (N, H, W) to (N, SIDE * SIDE) with mean 0 and deviation 1: brightness and contrast tell nothing."""
    small = [np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BOX), np.float64) for one in images]
    flat = np.reshape(small, (len(images), SIDE * SIDE))
    return np.asarray((flat - flat.mean(axis=1, keepdims=True)) / (flat.std(axis=1, keepdims=True) + 1.0))


def out_of_distribution(images: Gray, *, seed: int) -> dict[str, Gray]:
    """Generate what the gate should stop, from X-rays (N, H, W) and from nothing; each kind has N images.

    Other parts of the body are imitated by one magnified corner of a chest X-ray.
    """
    rng = np.random.default_rng(seed)
    count, side = len(images), images.shape[1]
    kinds: dict[str, Callable[[], Gray]] = {
        "on its side": lambda: np.ascontiguousarray(np.rot90(images, axes=(1, 2))),
        "upside down": lambda: np.ascontiguousarray(images[:, ::-1, ::-1]),
        "inverted": lambda: 255 - images,
        "nearly blank": lambda: np.clip(rng.normal(128, 4, images.shape), 0, 255).astype(np.uint8),
        "noise": lambda: rng.integers(0, 256, images.shape).astype(np.uint8),
        "photograph": lambda: np.stack([_scene(rng, side) for _ in range(count)]),
        "limb": lambda: np.stack([_limb(rng, side) for _ in range(count)]),
        "one corner": lambda: np.stack([_corner(image) for image in images]),
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
    pixels = np.exp(-((across / 0.45) ** 4))
    for place in rng.normal([-0.17, 0.17], 0.03):
        pixels += 1.2 * np.exp(-(((across - place) / 0.09) ** 2))
    return _stretched(pixels + rng.normal(0, 0.03, pixels.shape))


def _corner(image: Gray) -> Gray:
    side = len(image)
    return np.asarray(Image.fromarray(image[: side // 3, : side // 3]).resize((side, side)), np.uint8)


def _stretched(pixels: Vector) -> Gray:
    low, high = pixels.min(), pixels.max()
    return np.asarray((pixels - low) / (high - low + 1e-9) * 255, np.uint8)
