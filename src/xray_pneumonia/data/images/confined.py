"""The child's side of `decoding`: a process that may decode and answer, and hardly anything else."""

import json
import os
import resource
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from xray_pneumonia.data.images import decode
from xray_pneumonia.data.images.limits import ImageError

READY = b"ready"


def serve(line: Connection, size: int, modalities: tuple[str, ...], memory_mb: int) -> None:
    """Be a child: decode what is asked for until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    sys.dont_write_bytecode = True
    _confine(memory_mb)
    with suppress(EOFError, OSError):
        line.send_bytes(READY)
        while True:
            line.send_bytes(answer(line.recv_bytes(), size, modalities))


def _confine(memory_mb: int) -> None:
    """Limit memory, forbid writing, leave no core file with a patient's film, and be silent."""
    limits = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    if sys.platform.startswith("linux"):  # elsewhere the address space has no limit that holds
        with open("/proc/self/statm", encoding="ascii") as facts:
            limits[resource.RLIMIT_AS] = int(facts.read().split()[0]) * resource.getpagesize() + memory_mb * 2**20
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # C libraries write what they think of a file


def answer(path: bytes, size: int, modalities: tuple[str, ...]) -> bytes:
    """Decode one file; the answer is JSON, a line feed, and the pixels if there are any."""
    facts: dict[str, Any] = {}
    pixels = b""
    try:
        data = decode.read_bytes(os.fsdecode(path))
        facts["sha256"] = decode.sha256(data)
        picture = decode.decode(data, size, modalities=modalities)
        pixels = picture.pixels.tobytes()
        facts |= {"width": picture.width, "height": picture.height, "mode": picture.mode}
    except ImageError as error:
        facts |= {"code": error.code, "message": str(error)}
    except MemoryError:
        facts |= {"code": "too_much_memory", "message": "needs more memory than limits.memory_mb allows"}
    return report(facts, pixels)


def report(facts: dict[str, Any], pixels: bytes) -> bytes:
    """Write an answer."""
    known = {"sha256": "", "width": 0, "height": 0, "mode": "", "code": "", "message": ""}
    return json.dumps(known | facts).encode() + b"\n" + pixels
