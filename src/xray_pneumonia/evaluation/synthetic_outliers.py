"""Generates what an input gate should stop: turned and inverted X-rays, noise, photographs, limbs."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from xray_pneumonia.types import Gray, Vector


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
