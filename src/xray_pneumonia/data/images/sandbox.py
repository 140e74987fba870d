"""Files decoded in processes that may die: a limit of time and of memory for each file, and no way to write one.

A picture is a program for its parser. So whatever a stranger's file does to a decoder, hanging, filling
the memory or crashing it, happens in a child process that holds nothing else; the file is reported and
another child goes on. Children answer in plain bytes, never in pickles, and are forgotten when they end.
"""

import json
import os
import re
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from queue import Full, Queue
from threading import Event, Thread
from types import TracebackType
from typing import Self

import numpy as np

from xray_pneumonia.data.files import Found
from xray_pneumonia.types import Count, Gray, Positive

AHEAD = 256  # files that may be decoded before the first of them is taken
HANDED = 8  # files in a child's hands at once, so that it need not wait for the parent
START = 120.0  # seconds a child may take to start, on a machine that is busy
SHA256 = re.compile("([0-9a-f]{64})?")
PULSE = 0.5  # seconds after which a wait looks whether anybody still wants the answers


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one file may take.

    Args:
        seconds: of decoding.
        memory_mb: beyond what an idle child has, in mebibytes.
    """

    seconds: Positive
    memory_mb: Count


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What became of one file: `pixels` (size, size), or an error `code` and what it means."""

    found: Found
    sha256: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    code: str = ""
    message: str = ""
    pixels: Gray | None = None


@dataclass
class _Child:
    process: BaseProcess
    line: Connection
    held: deque[int] = field(default_factory=deque)  # places of the files it holds, the first one in work
    ready: bool = False
    since: float = field(default_factory=time.monotonic)  # when it last had something new to do

    def spent(self) -> float:
        return time.monotonic() - self.since


class Decoders:
    """Child processes that decode; a context manager.

    Args:
        count: of the processes.
        size: height and width of the pictures, in pixels.
        modalities: those of DICOM that are read.
        limits: for each file.
    """

    def __init__(self, *, count: int, size: int, modalities: Collection[str], limits: Limits) -> None:
        self._settings = (size, tuple(modalities), limits.memory_mb)
        self._size, self._limits = size, limits
        self._known: dict[int, Found] = {}  # files by their place, until they are yielded
        self._stop = Event()
        self._thread: Thread | None = None
        self._children = [self._start() for _ in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for child in self._children:
            child.line.close()
            child.process.kill()
        for child in self._children:
            child.process.join()

    def decode(self, files: Iterable[Found]) -> Iterator[Attempt]:
        """Decode files; yields in their order, a bounded number ahead. To be taken to its end, one call at a time."""
        source, done, first = enumerate(files), dict[int, Attempt](), 0
        more = True
        while (more or self._known) and not self._stop.is_set():
            more = more and self._fill(source, done)
            if first not in done:
                done |= dict(self._answers())
            while first in done:
                yield done.pop(first)
                del self._known[first]
                first += 1

    def batches(self, files: Iterable[Found], size: int) -> Iterator[list[Attempt]]:
        """Decode files while the caller works on the batch before; yields them in their order, `size` at a time."""
        ready: Queue[list[Attempt] | Exception | None] = Queue(2)
        self._thread = Thread(target=self._collect, args=(files, size, ready), name="decoding")
        self._thread.start()
        while (batch := ready.get()) is not None:
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def _collect(self, files: Iterable[Found], size: int, ready: "Queue[list[Attempt] | Exception | None]") -> None:
        attempts = self.decode(files)
        try:
            while batch := list(islice(attempts, size)):
                self._put(ready, batch)
            self._put(ready, None)
        except Exception as error:  # for the caller to see
            self._put(ready, error)

    def _put(self, ready: "Queue[list[Attempt] | Exception | None]", what: list[Attempt] | Exception | None) -> None:
        while not self._stop.is_set():
            with suppress(Full):
                ready.put(what, timeout=PULSE)
                return

    def _fill(self, source: Iterator[tuple[int, Found]], done: dict[int, Attempt]) -> bool:
        """Hand out files until every child holds enough; tells whether there may be more of them."""
        for child in sorted(self._children, key=lambda child: len(child.held)):
            while len(child.held) < HANDED and len(self._known) < AHEAD:
                place, found = next(source, (-1, None))
                if found is None:
                    return False
                self._known[place] = found
                if found.refusal:
                    done[place] = Attempt(found=found, code=found.refusal[0], message=found.refusal[1])
                else:
                    self._hand(child, place)
        return True

    def _hand(self, child: _Child, place: int) -> None:
        if not child.held:
            child.since = time.monotonic()
        child.held.append(place)
        with suppress(OSError):  # it died; the next look at it says so
            child.line.send_bytes(os.fsencode(self._known[place].path))

    def _answers(self) -> Iterator[tuple[int, Attempt]]:
        """Wait for something to happen; yields what came of it."""
        busy = [child for child in self._children if child.held]
        left = min((self._allowed(child) - child.spent() for child in busy), default=0.0)
        spoke = wait([child.line for child in busy], timeout=min(PULSE, max(0.0, left)))
        for child in busy:
            if child.line in spoke:
                yield from self._listen(child)
            elif child.spent() > self._allowed(child):
                limit = f"took more than {self._limits.seconds:g} s (limits.seconds)"
                yield self._bury(child, code="timeout", message=limit)

    def _allowed(self, child: _Child) -> float:
        return self._limits.seconds if child.ready else START

    def _listen(self, child: _Child) -> Iterator[tuple[int, Attempt]]:
        try:
            heard = child.line.recv_bytes(self._size**2 + 2**16)
        except (EOFError, OSError):
            what = f"ended its decoder; it may need more than {self._limits.memory_mb} MB (limits.memory_mb)"
            yield self._bury(child, code="decoder_died", message=what)
            return
        child.since = time.monotonic()
        if child.ready:
            place = child.held.popleft()
            yield place, _parsed(heard, self._known[place], self._size)
        child.ready = True

    def _bury(self, child: _Child, *, code: str, message: str) -> tuple[int, Attempt]:
        """Put a new child in the place of one that died or must; the file it had in work is to blame."""
        child.process.kill()
        child.process.join()
        child.line.close()
        if not child.ready:
            raise RuntimeError(f"a decoding process did not start (exit code {child.process.exitcode})")
        blamed, *others = child.held
        heir = self._start()
        self._children[self._children.index(child)] = heir
        for place in others:
            self._hand(heir, place)
        return blamed, Attempt(found=self._known[blamed], code=code, message=message)

    def _start(self) -> _Child:
        context = get_context("spawn")  # a fork would copy what the parent holds, its locks included
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, *self._settings), daemon=True)
        process.start()
        there.close()
        return _Child(process, here)


def _parsed(heard: bytes, found: Found, size: int) -> Attempt:
    """Take a child's answer, which a stranger's file may have written."""
    head, _, rest = heard.partition(b"\n")
    try:
        values = json.loads(head)
        texts = {name: str(values[name]) for name in ("sha256", "mode", "code", "message")}
        width, height = int(values["width"]), int(values["height"])
        pixels = np.frombuffer(rest, np.uint8).reshape(size, size) if rest else None
        sane = SHA256.fullmatch(texts["sha256"]) and (pixels is None) == bool(texts["code"])
    except (ValueError, KeyError, TypeError):
        sane = None
    if not sane:
        return Attempt(found=found, code="decoder_died", message="made its decoder say what no decoder says")
    return Attempt(found=found, pixels=pixels, width=width, height=height, **texts)


def _serve(line: Connection, size: int, modalities: tuple[str, ...], memory_mb: int) -> None:
    """Be a child; its imports are not the parent's."""
    from xray_pneumonia.data.images.confined import serve

    serve(line, size, modalities, memory_mb)
