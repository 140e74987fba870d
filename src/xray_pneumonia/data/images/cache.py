"""Cache decoded images: one uint8 array (N, H, W), memory-mapped, and a table of facts about the files.

The key hashes what the file system knows of every file, the labels, the image size and the decoder's version, so a
changed file makes a new cache. It is built by threads (Pillow and hashlib release the interpreter lock), under a file
lock, below a temporary name, and renamed when complete. Folders of old caches may be deleted at any time.
"""

import errno
import hashlib
import json
import logging
import mmap
import os
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from rich.console import Console
from rich.progress import track

from xray_pneumonia.data.files import LINK_TO_FOLDER, stamp_of
from xray_pneumonia.data.images import decode
from xray_pneumonia.data.images.limits import ImageError
from xray_pneumonia.errors import InputError
from xray_pneumonia.types import Gray
from xray_pneumonia.whole_files import write_whole

FACTS = ("sha256", "width", "height", "mode", "dhash", "error", "detail")
FILES, SUMS = ("images.npy", "facts.csv"), "blocks.json"
BLOCK = 2**22  # bytes hashed at a time
SAMPLED = 16  # blocks that are compared where the file system saw no change: 1.6 GB would take seconds at every start
OUTSIDE = "is a link that leads out of the data's folder; a training follows it with data.follow_links=true"
log = logging.getLogger(__name__)
AHEAD = 512  # images decoded before the first of them is written


@dataclass(frozen=True)
class ImageCache:
    """`images` (N, H, W) uint8, read-only; row i belongs to row i of `records`; unreadable files are black."""

    records: pd.DataFrame
    images: Gray
    folder: Path


def open_cache(records: pd.DataFrame, *, folder: str | Path, image_size: int) -> ImageCache:
    """Open the cache of these records; decodes the files first where that has not been done.

    Args:
        records: the table of `records.scan`.
        folder: of all caches; made when missing.
        image_size: height and width in pixels.
    """
    home = Path(folder) / cache_key(records, image_size)
    with _space_for(len(records) * image_size**2, Path(folder)):
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not _is_whole(home):
            with FileLock(f"{home}.lock"):
                if not _is_whole(home):
                    _build(records, home, image_size)
    facts = pd.read_csv(home / "facts.csv", dtype={"error": str, "detail": str}, keep_default_na=False)
    images = np.load(home / "images.npy", mmap_mode="r", allow_pickle=False)
    return ImageCache(pd.concat([records, facts], axis=1), images, home)


@contextmanager
def _space_for(size: int, folder: Path) -> Iterator[None]:
    """Name the bytes that are needed and free where the disk is full.

    Raises:
        InputError: it is, or the user's share of it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise
        free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
        raise InputError(
            f"data.cache_dir={folder}: the decoded images need {size} bytes, and {free} are free ({error.strerror}); "
            "make room, name another folder, or lower data.image_size"
        ) from error


def _is_whole(home: Path) -> bool:
    """Compare a cache with the hashes that were written with it.

    All blocks are compared, but a sample where the file system saw no change since they all were right.
    """
    try:
        sums = json.loads((home / SUMS).read_text(encoding="utf-8"))
        whole = all(_matches(home / name, **sums[name]) for name in FILES)
        if whole and any(stamp_of(home / name)[1] != sums[name]["stamp"] for name in FILES):  # copied, say
            with suppress(OSError):
                _write_sums(home, {name: sums[name]["blocks"] for name in FILES})
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return whole


def _matches(path: Path, *, stamp: str, blocks: list[str]) -> bool:
    size, now = stamp_of(path)
    numbers: Sequence[int] = range(-(-size // BLOCK))
    if len(numbers) != len(blocks):
        return False
    if stamp == now:
        own = random.SystemRandom()  # the module's own numbers are seeded, and part of a training's checkpoints
        numbers = own.sample(numbers, min(SAMPLED, len(numbers)))
    return _hash_blocks(path, numbers) == [blocks[number] for number in numbers]


def _hash_blocks(path: Path, numbers: Sequence[int] | None = None) -> list[str]:
    """Hash blocks of a file, by default all, in threads."""

    def hashed(number: int) -> str:
        with path.open("rb", buffering=0) as file:
            file.seek(number * BLOCK)
            return hashlib.sha256(file.read(BLOCK)).hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(hashed, range(-(-path.stat().st_size // BLOCK)) if numbers is None else numbers))


def _write_sums(home: Path, blocks: dict[str, list[str]]) -> None:
    sums = {name: {"stamp": stamp_of(home / name)[1], "blocks": hashes} for name, hashes in blocks.items()}
    write_whole(home / SUMS, [json.dumps(sums).encode()], sync=False, shared=True)


def release_pages(images: Gray) -> None:
    """Unmap the pages that were read, so that a large cache is not counted as memory; the system still keeps them."""
    if isinstance(images, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        images.base.madvise(mmap.MADV_DONTNEED)  # type: ignore[union-attr]


def cache_key(records: pd.DataFrame, image_size: int) -> str:
    """Return the name of the cache of these records: 32 hex digits."""
    table = records[["id", "label", "patient", "split", "stamp"]]
    columns = table.assign(refused=records["path"].eq("")).to_numpy().tolist()  # a link has the stamp of its target
    text = json.dumps([decode.DECODER_VERSION, image_size, columns])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _build(records: pd.DataFrame, home: Path, image_size: int) -> None:
    if home.exists():
        log.warning("the cache %s is damaged, or older than its checks; its images are decoded again", home)
    draft = home.with_name(f".{home.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)  # left by a killed build: the lock is ours
    try:
        _write(records, draft, image_size)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)  # what is left of a full disk is given back
        raise
    shutil.rmtree(home, ignore_errors=True)  # damaged
    os.replace(draft, home)


def _write(records: pd.DataFrame, draft: Path, image_size: int) -> None:
    draft.mkdir()
    shape = (len(records), image_size, image_size)
    array = np.lib.format.open_memmap(draft / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    with (draft / "images.npy").open("r+b") as file:  # a mapped page without room on the disk would end the process
        os.posix_fallocate(file.fileno(), 0, (draft / "images.npy").stat().st_size)
    facts = []
    for row, (pixels, fact) in enumerate(_decoded(records["path"].tolist(), image_size)):
        array[row] = pixels
        facts.append(fact)
    array.flush()
    pd.DataFrame(facts, columns=list(FACTS)).to_csv(draft / "facts.csv", index=False)
    _write_sums(draft, {name: _hash_blocks(draft / name) for name in FILES})


def _decoded(paths: list[str], image_size: int) -> Iterator[tuple[Gray | int, dict[str, Any]]]:
    """Decode in parallel, in order, a bounded number of images ahead."""
    starts = track(
        range(0, len(paths), AHEAD),
        "Decoding",
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in starts:
            yield from pool.map(partial(_decode_file, image_size=image_size), paths[start : start + AHEAD])


def _decode_file(path: str, *, image_size: int) -> tuple[Gray | int, dict[str, Any]]:
    facts: dict[str, Any] = dict.fromkeys(FACTS, "") | {"width": 0, "height": 0}
    try:
        if not path:
            raise ImageError("link_outside_root", OUTSIDE)
        if os.path.islink(path) and os.path.isdir(path):
            raise ImageError(*LINK_TO_FOLDER)
        data = decode.read_bytes(path)
        facts["sha256"] = decode.sha256(data)
        image = decode.decode(data, image_size)
    except ImageError as error:
        return 0, facts | {"error": error.code, "detail": str(error)}
    return image.pixels, facts | {name: getattr(image, name) for name in ("width", "height", "mode", "dhash")}
