"""Decode untrusted files in child processes: a file that ends its decoder is reported, another process takes over."""

import json
import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from threading import Event
from typing import Annotated, Any, Self

import numpy as np
from annotated_types import Interval

from xray_pneumonia.child_process import READY, START, Child, confine
from xray_pneumonia.data.files import InputFile
from xray_pneumonia.data.images import decode
from xray_pneumonia.data.images.limits import DicomRules, ImageError
from xray_pneumonia.types import Gray, Positive

AHEAD = 256  # files that may be decoded before the first of them is taken
GROUP, BRIEF = 16, 0.05  # files of one message, at most; seconds that a group should take
QUEUED = 2  # groups that a child holds at once, so that it need not wait for the parent
POLL = 0.5  # seconds after which a wait looks whether the answers are still wanted
SERVE = f"{__name__}:serve"  # what the children run
DOUBTFUL = {"torn", "contradictory_lut"}  # notes on pixels of which no sure answer is given
DAMAGED = "the file may be damaged"  # why there is none
SHA256 = re.compile("([0-9a-f]{64})?")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one file may take."""

    seconds: Positive  # of decoding
    memory_mb: Annotated[int, Interval(ge=1, le=2**24)]  # beyond what an idle child has, in mebibytes


USUAL = Limits(seconds=30.0, memory_mb=2048)  # those of conf/predict.yaml, and of whatever has no keys for them


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The result of one file: `pixels` (size, size) and notes on their decoding, or an error `code` and its meaning."""

    file: InputFile
    sha256: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    dhash: str = ""
    code: str = ""
    message: str = ""
    pixels: Gray | None = None
    notes: tuple[str, ...] = ()

    @property
    def doubtful(self) -> bool:
        """Whether no sure answer may be given, since the pixels may not be what was recorded."""
        return not DOUBTFUL.isdisjoint(self.notes)


@dataclass
class _Worker:
    child: Child
    queue: deque[list[int]] = field(default_factory=deque)  # positions of its files; it works on the first group
    group: int = 1  # files of the next group; more where they are decoded soon
    ready: bool = False
    since: float = field(default_factory=time.monotonic)  # when it last began something

    def elapsed(self) -> float:
        return time.monotonic() - self.since


class Decoders:
    """Decodes files in child processes; a context manager.

    Args:
        count: of the processes.
        size: height and width of the decoded images, in pixels.
        rules: which DICOM files are read.
        limits: for each file.
    """

    def __init__(self, *, count: int, size: int, rules: DicomRules, limits: Limits) -> None:
        self._settings = (size, asdict(rules), limits.memory_mb)
        self._size, self._limits = size, limits
        self._files: dict[int, InputFile] = {}  # by their position, until they are yielded
        self._stop, self._thread = Event(), ThreadPoolExecutor(1, thread_name_prefix="decoding")
        self._workers = [self._start() for _ in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.shutdown()
        for worker in self._workers:
            worker.child.end()

    def batches(self, files: Iterable[InputFile], size: int) -> Iterator[list[Attempt]]:
        """Decode files while the caller works on the batch before; yields them in order, `size` at a time."""
        attempts = self._decode(files)

        def take() -> list[Attempt]:
            return list(islice(attempts, size))

        coming = deque(self._thread.submit(take) for _ in range(2))
        while batch := coming.popleft().result():
            coming.append(self._thread.submit(take))
            yield batch

    def read(self, files: Iterable[InputFile]) -> list[Attempt]:
        """Decode files that fit into memory together, in their order."""
        return [attempt for batch in self.batches(files, AHEAD) for attempt in batch]

    def _decode(self, files: Iterable[InputFile]) -> Iterator[Attempt]:
        """Yield results in the order of the files, a bounded number of which are decoded ahead."""
        source, done, first = enumerate(files), dict[int, Attempt](), 0
        more = True
        while (more or self._files) and not self._stop.is_set():
            more = more and self._fill(source, done)
            if first not in done:
                done |= dict(self._wait())
            while first in done:
                yield done.pop(first)
                del self._files[first]
                first += 1

    def _fill(self, source: Iterator[tuple[int, InputFile]], done: dict[int, Attempt]) -> bool:
        """Send files until every worker holds enough; returns whether there may be more of them."""
        for worker in sorted(self._workers, key=lambda worker: len(worker.queue)):
            while len(worker.queue) < QUEUED and len(self._files) < AHEAD:
                taken = dict(islice(source, min(worker.group, AHEAD - len(self._files))))
                if not taken:
                    return False
                self._files |= taken
                for position, file in taken.items():
                    if file.refusal:
                        done[position] = Attempt(file=file, code=file.refusal[0], message=file.refusal[1])
                if group := [position for position in taken if position not in done]:
                    self._send(worker, group)
        return True

    def _send(self, worker: _Worker, group: list[int]) -> None:
        if not worker.queue:
            worker.since = time.monotonic()
        worker.queue.append(group)
        with suppress(OSError):  # it died, which the next wait finds
            worker.child.pipe.send_bytes(b"\0".join(os.fsencode(self._files[position].path) for position in group))

    def _wait(self) -> Iterator[tuple[int, Attempt]]:
        """Wait for answers, deaths and timeouts; yields positions and results."""
        busy = [worker for worker in self._workers if worker.queue]
        left = min((self._allowed(worker) - worker.elapsed() for worker in busy), default=0.0)
        answered = wait([worker.child.pipe for worker in busy], timeout=min(POLL, max(0.0, left)))
        for worker in busy:
            if worker.child.pipe in answered:
                yield from self._receive(worker)
            elif worker.elapsed() > self._allowed(worker):
                message = f"took more than {self._limits.seconds:g} s{self._named('seconds')}"
                yield from self._replace(worker, code="timeout", message=message)

    def _allowed(self, worker: _Worker) -> float:
        return self._limits.seconds if worker.ready else START

    def _receive(self, worker: _Worker) -> Iterator[tuple[int, Attempt]]:
        group = worker.queue[0] if worker.ready else []
        message = f"ended its decoder; it may need more than {self._limits.memory_mb} MB{self._named('memory_mb')}"
        try:
            answer = worker.child.pipe.recv_bytes((len(group) or 1) * (self._size**2 + 2**16))
            message = "made its decoder give an answer that none gives"
            attempts = list(_parsed(answer, [self._files[position] for position in group], self._size))
        except (EOFError, OSError, ValueError, KeyError, TypeError):
            yield from self._replace(worker, code="decoder_died", message=message)
            return
        if worker.ready:
            worker.group = min(GROUP, 2 * worker.group) if worker.elapsed() < BRIEF else max(1, worker.group // 2)
            worker.queue.popleft()
            yield from zip(group, attempts, strict=True)
        worker.ready, worker.since = True, time.monotonic()

    def _named(self, limit: str) -> str:
        return "" if self._limits is USUAL else f" (limits.{limit})"

    def _replace(self, worker: _Worker, *, code: str, message: str) -> Iterator[tuple[int, Attempt]]:
        """Start a new worker for one that died or must; a group is tried again one by one: which file did it?"""
        worker.child.end()
        if not worker.ready:
            raise RuntimeError(f"a decoding process did not start (exit code {worker.child.process.returncode})")
        failed, *others = worker.queue
        replacement = self._start()
        self._workers[self._workers.index(worker)] = replacement
        if len(failed) == 1:
            yield failed[0], Attempt(file=self._files[failed[0]], code=code, message=message)
        else:
            others = [*([position] for position in failed), *others]
        for group in others:
            self._send(replacement, group)

    def _start(self) -> _Worker:
        return _Worker(Child(SERVE, *self._settings))


def decode_files(paths: Iterable[str | os.PathLike[str]], size: int) -> list[Attempt]:
    """Decode files within the usual limits, in one child process."""
    with Decoders(count=1, size=size, rules=DicomRules(), limits=USUAL) as decoders:
        return decoders.read(InputFile(str(path), str(path), "") for path in paths)


def _parsed(answer: bytes, files: list[InputFile], size: int) -> Iterator[Attempt]:
    """Read a worker's answer on some files, which an untrusted one may have written.

    Raises:
        ValueError, KeyError, TypeError: no decoder gives such an answer.
    """
    place = 0
    for file in files:
        end = answer.index(b"\n", place)
        values = json.loads(answer[place:end])
        texts = {name: str(values[name]) for name in ("sha256", "mode", "dhash", "code", "message")}
        width, height, notes = int(values["width"]), int(values["height"]), tuple(map(str, values["notes"]))
        if not (SHA256.fullmatch(texts["sha256"]) and SHA256.fullmatch(texts["dhash"])):
            raise ValueError(f"no hash: {texts}")
        place, pixels = end + 1, None
        if not texts["code"]:
            pixels = np.frombuffer(answer, np.uint8, size**2, place).reshape(size, size)
            place += size**2
        yield Attempt(file=file, pixels=pixels, width=width, height=height, notes=notes, **texts)
    if files and place != len(answer):
        raise ValueError("more than was asked for")


def serve(pipe: Connection, size: int, rules: dict[str, Any], memory_mb: int) -> None:
    """Run in a child process: decode groups of files until the parent is gone."""
    known = DicomRules(**rules)
    confine(memory_mb)
    pipe.send_bytes(READY)
    while True:
        paths = pipe.recv_bytes().split(b"\0")
        pipe.send_bytes(b"".join(decode_file(path, size, known) for path in paths))


def decode_file(path: bytes, size: int, rules: DicomRules) -> bytes:
    """Decode one file; the answer is JSON, a line feed, and the pixels if there are any."""
    facts: dict[str, Any] = {}
    pixels = b""
    try:
        data = decode.read_bytes(os.fsdecode(path))
        facts["sha256"] = decode.sha256(data)
        decoded = decode.decode(data, size, rules=rules)
        pixels = decoded.pixels.tobytes()
        facts |= {name: getattr(decoded, name) for name in ("width", "height", "mode", "dhash", "notes")}
    except ImageError as error:
        facts |= {"code": error.code, "message": str(error)}
    except MemoryError:
        facts |= {"code": "too_much_memory", "message": "needs more memory than a decoder is given"}
    return written(facts, pixels)


def written(facts: dict[str, Any], pixels: bytes) -> bytes:
    """Write an answer as bytes."""
    known = {"sha256": "", "width": 0, "height": 0, "mode": "", "dhash": "", "code": "", "message": "", "notes": ()}
    return json.dumps(known | facts).encode() + b"\n" + pixels
