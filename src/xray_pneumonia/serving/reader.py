"""Reads uploaded films: decodes each in a child process with limits, classifies those that wait together."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from xray_pneumonia.data.files import InputFile
from xray_pneumonia.data.images.limits import DicomRules
from xray_pneumonia.data.images.sandbox import Attempt, Decoders, Limits
from xray_pneumonia.types import Gray

Classify = Callable[[list[Attempt]], list[dict[str, Any]]]  # decoded files -> rows as those of `xray predict`
DISPLAYED = 1024  # height and width of a film on the page, in pixels
TOGETHER = 16  # films of one forward pass, at most


class Reader:
    """Decodes and classifies; a context manager. Its methods are called from many threads.

    Args:
        classify: what answers.
        image_size: height and width that the model reads, in pixels.
        rules: which DICOM files are read.
        limits: of one file.
        workers: processes that decode.
    """

    def __init__(self, classify: Classify, *, image_size: int, rules: DicomRules, limits: Limits, workers: int) -> None:
        def decoders(size: int) -> Decoders:
            return Decoders(count=1, size=size, rules=rules, limits=limits)

        self._classify = classify
        self._all = [decoders(image_size) for _ in range(workers)]
        self._display = decoders(DISPLAYED)
        self._idle: queue.Queue[Decoders] = queue.Queue()
        for one in self._all:
            self._idle.put(one)
        self._display_lock = threading.Lock()
        self._waiting: queue.Queue[tuple[Attempt, Future[dict[str, Any]]] | None] = queue.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="classify")

    def __enter__(self) -> Self:
        self._running = self._thread.submit(self._answer_all)
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.put(None)
        self._thread.shutdown()
        for one in (*self._all, self._display):
            one.__exit__()

    def read(self, path: Path) -> dict[str, Any]:
        """Answer one file; a row as those of `xray predict`, with `error` and `message` where it cannot be read."""
        with self._decoder() as decoders:
            attempt = _decode(decoders, path)
        if attempt.pixels is None:
            return {"error": attempt.code, "message": attempt.message, "sha256": attempt.sha256}
        future: Future[dict[str, Any]] = Future()
        self._waiting.put((attempt, future))
        return future.result()

    def decode(self, path: Path) -> Attempt:
        """Decode one file as the model sees it."""
        with self._decoder() as decoders:
            return _decode(decoders, path)

    def picture(self, path: Path) -> tuple[bytes, Attempt]:
        """Render one file for the page: a gray PNG, squashed to a square, and what is known of the file."""
        with self._display_lock:
            attempt = _decode(self._display, path)
        return (b"" if attempt.pixels is None else png(attempt.pixels)), attempt

    @contextmanager
    def _decoder(self) -> Iterator[Decoders]:
        decoders = self._idle.get()
        try:
            yield decoders
        finally:
            self._idle.put(decoders)

    def _answer_all(self) -> None:
        """Classify what waits, in one forward pass, until there is nothing more to come."""
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < TOGETHER and not self._waiting.empty():
                one = self._waiting.get()
                if one is None:
                    self._waiting.put(None)
                    break
                batch.append(one)
            futures = [future for _, future in batch]
            try:
                for future, row in zip(futures, self._classify([attempt for attempt, _ in batch]), strict=True):
                    future.set_result(row)
            except Exception as error:
                for future in futures:
                    if not future.done():
                        future.set_exception(error)


def _decode(decoders: Decoders, path: Path) -> Attempt:
    return decoders.read([InputFile(str(path), "film", "")])[0]


def png(pixels: Gray) -> bytes:
    """Write a gray image (H, W), or one with colours and opacity (H, W, 4), as PNG."""
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
