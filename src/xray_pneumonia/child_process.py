"""Start child processes for untrusted input: with limits of time and memory, unable to write files.

Whatever an input does to a library (hang, fill the memory, crash, run code) happens in a process that holds nothing
else. Parent and child exchange plain bytes, never pickles. A child imports what it is told to and not the program that
started it, as `multiprocessing` would have it: a script that serves a model need not guard its main module.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import weakref
from contextlib import suppress
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

START = 120.0  # seconds a child may take to start, on a machine that is busy
READY = b"ready"  # its first message
PROGRAM = (  # -P and the parent's path: no module of the working folder takes the place of an installed one
    "import json, sys; given = json.loads(sys.argv[1]); sys.path[:] = given.pop('path'); "
    "from xray_pneumonia.child_process import run; run(**given)"
)
# glibc gives the memory of each image back and asks for it again, which costs a third of the time of decoding; NumPy
# starts a thread for each processor, which no child uses
SETTINGS = {"MALLOC_TRIM_THRESHOLD_": str(2**26), "MALLOC_MMAP_THRESHOLD_": str(2**25), "OPENBLAS_NUM_THREADS": "1"}


class Child:
    """A child process and the pipe to it.

    Args:
        serve: the function that it runs, as `module:name`; it is given the pipe and the settings.
        settings: values that JSON can hold.
    """

    def __init__(self, serve: str, *settings: Any) -> None:
        self.pipe, there = Pipe()
        with there:
            given = {"path": sys.path, "serve": serve, "settings": settings, "pipe": there.fileno()}
            command = [sys.executable, "-P", "-c", PROGRAM, json.dumps(given)]
            self.process = subprocess.Popen(
                command, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, env=os.environ | SETTINGS
            )
        self._end = weakref.finalize(self, _end, self.process, self.pipe)

    def end(self) -> None:
        """Kill the process, whatever it does, and wait until it is gone."""
        self._end()


def _end(process: subprocess.Popen[bytes], pipe: Connection) -> None:
    pipe.close()
    process.kill()
    process.wait()


def run(serve: str, settings: list[Any], pipe: int) -> None:
    """Run as a child process until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    sys.dont_write_bytecode = True
    module, _, name = serve.partition(":")
    with suppress(EOFError, OSError):
        getattr(import_module(module), name)(Connection(pipe), *settings)


def confine(memory_mb: int) -> None:
    """Limit memory to what this process has and so many mebibytes more, forbid writing, leave no core, be silent."""
    limits = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}  # a core file would hold a patient's image
    if sys.platform.startswith("linux"):  # elsewhere the address space has no limit that holds
        with open("/proc/self/statm", encoding="ascii") as facts:
            limits[resource.RLIMIT_AS] = int(facts.read().split()[0]) * resource.getpagesize() + memory_mb * 2**20
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # C libraries write what they think of a file
