"""Packages that must not be trained with: versions known to be bad, and files that stand in for them."""

import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.specifiers import SpecifierSet

from xray_pneumonia.errors import InputError


@dataclass(frozen=True)
class Bad:
    """Versions of a package that are refused, why, and what to install instead."""

    package: str
    versions: SpecifierSet
    why: str
    cure: str


THIEF = "a malicious release that steals credentials"
BAD = tuple(
    Bad(package, SpecifierSet(versions, prereleases=True), why, cure)
    for package, versions, why, cure in [
        ("pytorch-lightning", "==2.6.2", THIEF, "2.6.4 or newer; change your passwords"),
        ("pytorch-lightning", "==2.6.3", THIEF, "2.6.4 or newer; change your passwords"),
        (
            "pytorch-lightning",
            "<2.6",
            "loading a checkpoint can run code (CVE-2026-31221)",
            "2.6.4 or newer",
        ),
        (
            "lightning",
            "==2.6.2",
            "a malicious release that steals credentials",
            "nothing: it is not needed; change your passwords",
        ),
        (
            "lightning",
            "==2.6.3",
            "a malicious release that steals credentials",
            "nothing: it is not needed; change your passwords",
        ),
        (
            "torch",
            "<2.10",
            "a checkpoint can corrupt memory (CVE-2026-24747)",
            "2.10 or newer",
        ),
        ("hydra-core", "<1.3.8", "its block-list of what a config may run can be passed by", "1.3.8 or newer"),
        ("mlflow", "<3.13", "keeps runs in plain files, and its server has known holes", "3.13 or newer"),
        ("mlflow-skinny", "<3.13", "keeps runs in plain files, and its server has known holes", "3.13 or newer"),
        ("pillow", "<12.3", "its parsers can be made to eat all memory", "12.3 or newer"),
        ("pydicom", "<3.0.2", "a DICOM directory can lead it out of its folder (CVE-2026-32711)", "3.0.2 or newer"),
        ("optuna", "<5", "its database is another one", "5 or newer"),
        ("albumentations", ">2.0.8", "is no longer under the MIT licence", "2.0.8"),
    ]
)
SHADOWED = ("mlflow", "torch", "hydra", "omegaconf", "optuna", "numpy", "pandas", "pytorch_lightning", "PIL")


def installed(package: str) -> str | None:
    """Read the version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def problems() -> list[str]:
    """List what must not be trained with, each with its cure."""
    found = []
    for bad in BAD:
        there = installed(bad.package)
        if there is not None and bad.versions.contains(there):
            found.append(f"{bad.package} {there}: {bad.why}; install {bad.cure}")
    return found + [f"{path}: is imported instead of the package {path.stem}; rename it" for path in _stand_ins()]


def _stand_ins() -> list[Path]:
    """Files of the folder a command starts in that Python would import instead of packages."""
    here = Path.cwd()
    if not any(entry in {"", str(here)} for entry in sys.path):
        return []
    paths = [path for name in SHADOWED for path in (here / f"{name}.py", here / name / "__init__.py") if path.exists()]
    return [path.parent if path.name == "__init__.py" else path for path in paths]


def require_sound() -> None:
    """Refuse to start with what is known to be bad.

    Raises:
        InputError: with every problem and its cure.
    """
    found = problems()
    if found:
        raise InputError("\n  ".join(["these packages are known to be bad:", *found]) if len(found) > 1 else found[0])
