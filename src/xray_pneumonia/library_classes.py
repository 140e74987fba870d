"""List the classes of libraries that a config may name; a config can make none of them read, write or run anything."""

import os
from collections.abc import Mapping

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else its import asks a server for the newest version
CALLBACKS = {
    "DeviceStatsMonitor", "EarlyStopping", "LearningRateMonitor", "ModelSummary", "RichModelSummary",
    "StochasticWeightAveraging", "Timer",
}  # fmt: skip
LOSSES = {"BCEWithLogitsLoss", "HuberLoss", "L1Loss", "MSELoss", "SmoothL1Loss"}  # of logits and labels, (B,) each
OPTIMIZERS = {
    "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD",
}  # fmt: skip
SCHEDULES = {
    "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "ExponentialLR", "LinearLR", "MultiStepLR", "PolynomialLR",
    "StepLR",
}  # fmt: skip
# Of albumentations 2.0.8. Not here: what runs functions (Lambda) or reads files (TextImage), or needs other images.
TRANSFORMS = {
    "AdditiveNoise", "AdvancedBlur", "Affine", "AutoContrast", "Blur", "CLAHE", "CenterCrop", "CoarseDropout",
    "ColorJitter", "ConstrainedCoarseDropout", "Crop", "CropAndPad", "D4", "Defocus", "Downscale", "ElasticTransform",
    "Emboss", "Equalize", "Erasing", "FrequencyMasking", "GaussNoise", "GaussianBlur", "GlassBlur", "GridDistortion",
    "GridDropout", "GridElasticDeform", "HorizontalFlip", "Illumination", "ImageCompression", "InvertImg",
    "LongestMaxSize", "MedianBlur", "Morphological", "MotionBlur", "MultiplicativeNoise", "NoOp", "OneOf",
    "OpticalDistortion", "Pad", "PadIfNeeded", "Perspective", "PiecewiseAffine", "PixelDropout",
    "PlasmaBrightnessContrast", "PlasmaShadow", "Posterize", "RandomBrightnessContrast", "RandomCrop",
    "RandomCropFromBorders", "RandomGamma", "RandomGridShuffle", "RandomOrder", "RandomResizedCrop", "RandomRotate90",
    "RandomScale", "RandomShadow", "RandomSizedCrop", "RandomToneCurve", "Resize", "RingingOvershoot", "Rotate",
    "SafeRotate", "SaltAndPepper", "Sequential", "Sharpen", "ShiftScaleRotate", "ShotNoise", "SmallestMaxSize",
    "Solarize", "SomeOf", "SquareSymmetry", "Superpixels", "ThinPlateSpline", "TimeMasking", "TimeReverse", "Transpose",
    "UnsharpMask", "VerticalFlip", "XYMasking", "ZoomBlur",
}  # fmt: skip
NAMES: Mapping[str, tuple[str, set[str]]] = {  # key of a config -> module, its classes
    "augmentation": ("albumentations", TRANSFORMS),
    "callbacks": ("pytorch_lightning.callbacks", CALLBACKS),
    "loggers": ("pytorch_lightning.loggers", {"CSVLogger", "TensorBoardLogger", "WandbLogger"}),
    "loss": ("torch.nn", LOSSES),
    "optimizer": ("torch.optim", OPTIMIZERS),
    "scheduler": ("torch.optim.lr_scheduler", SCHEDULES),
}
# What is given to loggers: a place in the run, and its name. Configs do not choose where anything is written.
PLACES = ("save_dir", "name", "version", "sub_dir", "dir", "id", "experiment", "log_model", "checkpoint_name")


def lists(target: str, group: str) -> bool:
    """Tell whether a config may name this class of a library below this key."""
    module, _, name = target.rpartition(".")
    known, names = NAMES.get(group, ("", ()))
    return module == known and name in names


def targets() -> list[str]:
    """List all of them."""
    return [f"{module}.{name}" for module, names in NAMES.values() for name in sorted(names)]
