"""Compute with an exported graph in a child process: a graph is a program, which may not end or fill the memory."""

import json
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from xray_pneumonia.child_process import READY, START, Child, confine
from xray_pneumonia.errors import InputError
from xray_pneumonia.types import Gray, Vector

LOAD_SECONDS, IMAGE_SECONDS = 60.0, 30.0  # to read a graph; to answer for one image
MEMORY_MB, PER_THREAD_MB = 4096, 128  # what a graph may take beyond four times its file
MAX_FACTS, MAX_MESSAGE = 2**21, 300  # bytes
FAILED, DONE = b"!", b"="  # how an answer begins


class GraphProcess:
    """A child process that holds one graph.

    Args:
        path: of the graph, a regular file.
        wanted: names of what is computed, (B,) each, where the graph gives it.
        threads: of the computation.

    Raises:
        InputError: the graph cannot be read within the limits.
    """

    def __init__(self, path: Path, *, wanted: list[str], threads: int) -> None:
        self._path = path
        memory_mb = MEMORY_MB + PER_THREAD_MB * threads + 4 * path.stat().st_size // 2**20
        self._child = Child(f"{__name__}:serve", str(path.resolve()), wanted, threads, memory_mb)
        self._receive(START, "to start")
        facts = json.loads(self._receive(LOAD_SECONDS, "to be read"))
        self.inputs, self.outputs = facts["inputs"], facts["outputs"]
        self.card, self.labels = facts["card"], facts["labels"]
        self._columns = len([name for name in wanted if name in self.outputs])

    def run(self, batch: Gray) -> Vector:
        """Compute what is wanted of (B, S, S) images, (B, columns).

        Raises:
            InputError: the graph fails, takes too long, or gives another number of values.
        """
        self._child.pipe.send_bytes(np.ascontiguousarray(batch).tobytes())
        answer = self._receive(IMAGE_SECONDS * len(batch), f"for {len(batch)} images")
        if len(answer) != 8 * len(batch) * self._columns:
            raise InputError(f"{self._path}: gives {len(answer) // 8} values for {len(batch)} images")
        return np.frombuffer(answer, np.float64).reshape(len(batch), self._columns)

    def _receive(self, seconds: float, what: str) -> bytes:
        try:
            if not self._child.pipe.poll(seconds):
                self._child.end()
                raise InputError(f"{self._path}: takes more than {seconds:g} s {what}; no graph of this project does")
            answer = self._child.pipe.recv_bytes(MAX_FACTS)
        except (EOFError, OSError) as error:
            self._child.end()
            raise InputError(f"{self._path}: ended its process; it may need more memory than it is given") from error
        if answer.startswith(FAILED):
            raise InputError(f"{self._path}: cannot be read as a graph: {answer[1:].decode(errors='replace')}")
        return answer.removeprefix(DONE)


def serve(pipe: Connection, path: str, wanted: list[str], threads: int, memory_mb: int) -> None:
    """Run in a child process: read a graph, say what it takes and gives, compute until the parent is gone."""
    import onnxruntime

    confine(memory_mb)
    pipe.send_bytes(READY)
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave the processor
        # from bytes: a graph that wants data from other files gets none
        session = onnxruntime.InferenceSession(Path(path).read_bytes(), options, providers=["CPUExecutionProvider"])
        pipe.send_bytes(DONE + json.dumps(_facts(session)).encode())
        [entry], outputs = session.get_inputs(), [one.name for one in session.get_outputs() if one.name in wanted]
    except Exception as error:  # the runtime has many kinds
        pipe.send_bytes(FAILED + _message(error))
        return
    while True:
        pixels = np.frombuffer(pipe.recv_bytes(), np.uint8).reshape(-1, *entry.shape[1:])
        try:
            found = np.column_stack(session.run(outputs, {entry.name: pixels}))
            answer = DONE + np.asarray(found, np.float64).tobytes()
        except Exception as error:
            answer = FAILED + _message(error)
        pipe.send_bytes(answer)


def _facts(session: Any) -> Mapping[str, Any]:
    return {
        "inputs": [[one.name, one.type, one.shape[1:]] for one in session.get_inputs()],
        "outputs": [one.name for one in session.get_outputs()],
        **{name: session.get_modelmeta().custom_metadata_map.get(name, "null") for name in ("card", "labels")},
    }


def _message(error: Exception) -> bytes:
    return " ".join(str(error).split())[:MAX_MESSAGE].encode()
