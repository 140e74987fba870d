"""Make training faster without changing its results beyond rounding; each measure has its key."""

import ctypes
import logging
import sys

import torch
from torch import nn

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's names and numbers, malloc.h
# With fewer channels, the CPU convolutions of torch 2.15 write beyond their buffers in this layout when the
# batch size changes between backward passes: widths 4 to 12 crash, 16 and more pass glibc's heap checks.
SAFE_CHANNELS = 16


def prepare_process(*, keep_freed_memory: bool, threads: int | None) -> None:
    """Set threads and memory for the whole process, and log them.

    Deterministic algorithms also fill every fresh tensor with NaN, which finds reads of uninitialised memory and costs
    a pass over the memory; there are none here, so it is off.
    """
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
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


def lay_out(net: nn.Module, *, channels_last: bool) -> nn.Module:
    """Store images and filters with the channels innermost, which convolutions read faster.

    Nets with narrow convolutions stay as they are: see `SAFE_CHANNELS`.
    """
    narrow = [name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d) and not _is_wide(layer)]
    if not channels_last or narrow:
        log.info("speed: default layout%s", f", {narrow[0]} is too narrow for channels_last" if narrow else "")
        return net
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _is_wide(layer: nn.Conv2d) -> bool:
    return layer.out_channels >= SAFE_CHANNELS and (layer.in_channels >= SAFE_CHANNELS or layer.in_channels == 1)
