"""Augment training images: config keys, random parameters, OpenCV kernels and albumentations as their reference."""

from xray_pneumonia.data.augment.augmentation import Augmentation

__all__ = ["Augmentation"]
