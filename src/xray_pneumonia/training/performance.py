"""Set the threads and the memory allocator of a process that trains."""

import ctypes
import logging
import sys

import torch

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's names and numbers, malloc.h


def prepare_process(*, keep_freed_memory: bool, threads: int | None) -> None:
    """Set threads, memory and a GPU's precision for the whole process, and log the first two.

    32 bits are 32 bits: by default a GPU's convolutions round to 10 bits of mantissa (TF32).

    Deterministic algorithms also fill every fresh tensor with NaN, which finds reads of uninitialised memory and costs
    a pass over the memory; there are none here, so it is off.
    """
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.allow_tf32 = False
    if threads is not None:
        torch.set_num_threads(threads)
    kept = keep_freed_memory and keep_memory()
    log.info("speed: %d threads, freed memory %s", torch.get_num_threads(), "kept" if kept else "returned")


def keep_memory() -> bool:
    """Tell glibc to keep freed blocks: faulting in fresh activations costs more than the arithmetic.

    Returns:
        Whether the C library took it; only glibc does.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
