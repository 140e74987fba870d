"""Augment training images: keys, drawn parameters, OpenCV kernels and the albumentations they equal."""

from xray_pneumonia.data.augment.augmentation import Augmentation

__all__ = ["Augmentation"]
