"""Cache decoded images: one uint8 array (N, H, W), memory-mapped, and a table of facts about the files.

The key hashes what the file system knows of every file, the labels, the image size and the decoder's version, so a
changed file makes a new cache. Child processes decode, as for `xray predict`, so that no file ends a training. A cache
is built under a file lock, below a temporary name, and renamed when complete. Old caches may be deleted at any time.
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
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from xray_pneumonia.data.files import LINK_TO_FOLDER, InputFile, stamp_of
from xray_pneumonia.data.images import limits
from xray_pneumonia.data.images.sandbox import USUAL, Decoders
from xray_pneumonia.errors import InputError, raise_if_stopped
from xray_pneumonia.types import PROCESSORS, Gray
from xray_pneumonia.whole_files import file_lock, write_whole

FACTS = ("sha256", "width", "height", "mode", "dhash", "error", "detail", "notes")
FILES, SUMS = ("images.npy", "facts.csv"), "blocks.json"
BLOCK = 2**22  # bytes hashed at a time
SAMPLED = 16  # blocks that are compared where the file system saw no change: 1.6 GB would take seconds at every start
OUTSIDE = "is a link that leads out of the data's folder; a training follows it with data.follow_links=true"
PASSING = {"timeout", "decoder_died", "too_much_memory", "unreadable"}  # errors that another try may not meet
PER_CHILD = 2**23  # bytes of files for which another decoding process pays
BATCH = 512  # images from one look at the progress to the next
log = logging.getLogger(__name__)


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
        if not _is_whole(home) or _facts(home)["error"].isin(PASSING).any():
            with file_lock(f"{home}.lock"):
                _try_again(records, home, image_size) if _is_whole(home) else _build(records, home, image_size)
    images = np.load(home / "images.npy", mmap_mode="r", allow_pickle=False)
    return ImageCache(pd.concat([records, _facts(home)], axis=1), images, home)


def _facts(home: Path) -> pd.DataFrame:
    return pd.read_csv(home / "facts.csv", dtype={"error": str, "detail": str, "notes": str}, keep_default_na=False)


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
        with (home / "facts.csv").open(encoding="utf-8") as file:
            known = file.readline().strip() == ",".join(FACTS)
        whole = known and all(_matches(home / name, **sums[name]) for name in FILES)
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
    text = json.dumps([limits.DECODER_VERSION, image_size, columns])
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
    for row, (pixels, fact) in enumerate(_decoded(records, image_size)):
        array[row] = pixels
        facts.append(fact)
    array.flush()
    pd.DataFrame(facts, columns=list(FACTS)).to_csv(draft / "facts.csv", index=False)
    _write_sums(draft, {name: _hash_blocks(draft / name) for name in FILES})


def _try_again(records: pd.DataFrame, home: Path, image_size: int) -> None:
    """Decode again what failed for a reason that may have passed; nobody looks at those images meanwhile."""
    facts = _facts(home)
    rows = np.flatnonzero(facts["error"].isin(PASSING))
    found = list(_decoded(records.iloc[rows], image_size))
    if all(fact["error"] in PASSING for _, fact in found):
        return
    images = np.load(home / "images.npy", mmap_mode="r+", allow_pickle=False)
    for row, (pixels, fact) in zip(rows, found, strict=True):
        images[row], facts.loc[row] = pixels, fact
    images.flush()
    facts.to_csv(home / "facts.csv", index=False)
    _write_sums(home, {name: _hash_blocks(home / name) for name in FILES})


def _decoded(records: pd.DataFrame, image_size: int) -> Iterator[tuple[Gray | int, dict[str, Any]]]:
    """Decode in child processes, in order; yields pixels, 0 where there are none, and facts."""
    files = list(map(_input, records["path"], records["id"]))
    count = min(PROCESSORS, 1 + int(records["bytes"].sum()) // PER_CHILD)
    shown: dict[str, Any] = {"console": Console(stderr=True), "disable": not sys.stderr.isatty(), "transient": True}
    with Decoders(count=count, size=image_size, rules=limits.DicomRules(), limits=USUAL) as decoders:
        batches = decoders.batches(files, BATCH)
        for batch in track(batches, "Decoding", total=-(-len(files) // BATCH), **shown):
            raise_if_stopped()
            for one in batch:
                names = ("sha256", "width", "height", "mode", "dhash")
                facts = {name: getattr(one, name) for name in names} | {"notes": " ".join(one.notes)}
                yield 0 if one.pixels is None else one.pixels, facts | {"error": one.code, "detail": one.message}


def _input(path: str, name: str) -> InputFile:
    refusal = None if path else ("link_outside_root", OUTSIDE)
    if path and os.path.islink(path) and os.path.isdir(path):
        refusal = LINK_TO_FOLDER
    return InputFile(path, name, "", refusal)
