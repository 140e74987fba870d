"""Download the public chest X-rays from Kaggle and check them by counts."""

import shutil
from collections.abc import Callable
from pathlib import Path

from xray_pneumonia.data.records import scan
from xray_pneumonia.errors import InputError
from xray_pneumonia.types import CLASSES

# Kermany et al., "Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images", Mendeley Data, 2018.
PUBLISHED = {("train", 0): 1341, ("train", 1): 3875, ("val", 0): 8, ("val", 1): 8, ("test", 0): 234, ("test", 1): 390}


def fetch_from_kaggle(dataset: str) -> Path:
    """Download a data set through kagglehub, which caches it; returns the folder.

    Raises:
        InputError: Kaggle cannot be reached or refuses.
    """
    import kagglehub

    try:
        return Path(kagglehub.dataset_download(dataset))
    except Exception as error:  # kagglehub lets through whatever its HTTP library raises
        raise InputError(
            f"dataset={dataset}: Kaggle cannot be reached or refuses ({type(error).__name__}: {_reason(error)}); check "
            "the network, or unpack the archive by hand and name the folder with data.root=DIR"
        ) from error


def _reason(error: Exception) -> str:
    """Return the first line; an HTTP library that got no answer writes its whole chain of errors into it."""
    said = next(iter(str(error).splitlines()), "no reason given")
    return "no answer" if "Caused by" in said else said


def install(dataset: str, target: Path, *, fetch: Callable[[str], Path] = fetch_from_kaggle) -> int:
    """Put the data set of this name on Kaggle at `target`, complete or not at all; returns the number of images.

    Raises:
        InputError: the target exists, or the counts differ from the published ones.
    """
    if target.exists():
        raise InputError(f"target={target}: exists already; remove it or name another folder with target=DIR")
    found = fetch(dataset)
    source = next((folder for folder in (found / "chest_xray", found) if (folder / "train").is_dir()), found)
    records = scan(source)
    counts = {key: int(n) for key, n in records.groupby(["split", "label"]).size().items()}  # type: ignore[misc]
    if counts != PUBLISHED:
        wrong = [
            f"{split}/{CLASSES[label]} {counts.get((split, label), 0)} instead of {n}"
            for (split, label), n in PUBLISHED.items()
            if counts.get((split, label), 0) != n
        ]
        raise InputError(f"{source}: is not the published data set: {', '.join(wrong)}; download it again")
    draft = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    for split in ("train", "val", "test"):
        for name in CLASSES:
            shutil.copytree(source / split / name, draft / split / name, ignore=shutil.ignore_patterns(".*"))
    draft.rename(target)
    return len(records)
