"""What the tests share: generated X-rays, one store, the real command; real X-rays and PostgreSQL where there are."""

import ctypes
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.hydra import Hydra
from matplotlib.figure import Figure
from PIL import Image

from xray_pneumonia import cli
from xray_pneumonia.data import synthetic

for number in (signal.SIGINT, signal.SIGHUP):  # ignored where pytest runs in the background; commands inherit that
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
REAL = Path(__file__).parents[2] / "shared" / "data"
POSTGRESQL = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
PATIENTS = 40
TINY_NET = ["model=resnet", "model.width=4", "model.depth=1", "model.stages=2", "data.image_size=32"]


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def run_id(self) -> str:
        return self.out.splitlines()[-1].split()[0].removeprefix("run_id=")


@pytest.fixture(scope="session")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of generated X-rays; read-only by agreement."""
    root = tmp_path_factory.mktemp("xrays") / str(PATIENTS)
    synthetic.generate(root, patients=PATIENTS, seed=0)
    return root


@pytest.fixture(scope="session", autouse=True)
def quick_libraries() -> Iterator[None]:
    """Save figures small and without a layout, which takes longer than a tiny training; compose each config once."""
    save = Figure.savefig

    def small(figure: Figure, *arguments: Any, **options: Any) -> None:
        figure.set_layout_engine("none")
        save(figure, *arguments, **{**options, "dpi": 30})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", small)
        patch.setattr(Hydra, "get_mode", lambda *_, **__: None)  # composes the config to look for `hydra.mode`
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Copy the tables of a new SQLite store, which MLflow makes by sixty migrations, where a test imports MLflow."""
    if "mlflow" not in sys.modules:
        yield
        return
    from mlflow.store.db import utils

    template, make = tmp_path_factory.mktemp("template") / "mlflow.db", utils._initialize_tables

    def copy(engine: Any) -> None:
        if engine.dialect.name != "sqlite":
            return make(engine)
        if not template.exists():
            first = utils.create_sqlalchemy_engine(f"sqlite:///{template}")
            make(first)
            first.dispose()
        with closing(sqlite3.connect(template)) as made, closing(sqlite3.connect(engine.url.database)) as new:
            made.backup(new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_initialize_tables", copy)
        yield


@pytest.fixture
def drawn() -> None:
    """Let the commands of this test draw their figures."""


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store and cache for all tests that do not ask for an empty one: making a database takes seconds."""
    return tmp_path_factory.mktemp("home") / "mlruns"


@pytest.fixture(scope="session")
def tiny(xrays: Path, home: Path) -> list[str]:
    """Overrides that make a training take a second."""
    return [
        f"data.root={xrays}",
        f"home={home}",
        *TINY_NET,
        "trainer=cpu",
        "trainer.max_epochs=2",
        "trainer.keep_freed_memory=false",
        "tracking.system_metrics=false",
        "augmentation=none",
        "evaluation=quick",
    ]


@pytest.fixture
def xray(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> Callable[..., Outcome]:
    """Run the command line in this process, from an empty folder; figures are a white pixel each, unless `drawn`."""
    if "drawn" not in request.fixturenames:
        white = Image.new("L", (1, 1), 255)
        monkeypatch.setattr(Figure, "savefig", lambda _, place, **__: white.save(place, "PNG"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["xray", *arguments])
        handlers = {number: signal.getsignal(number) for number in cli.STOPPING}
        try:
            code = cli.main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def prepare(xray: Callable[..., Outcome], tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run `xray train` until the first epoch would begin; returns what would be trained."""
    from xray_pneumonia.workflows import training  # takes seconds, which tests of data need not wait

    def run(*overrides: str) -> training.Training:
        kept: list[training.Training] = []
        with monkeypatch.context() as patch:
            patch.setattr(training, "run_training", lambda built, **_: kept.append(built) or {}["enough"])
            outcome = xray("train", *tiny, *overrides)
        assert kept, outcome.err
        return kept[0]

    return run


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the command line as a process of its own, from an empty folder."""

    def run(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "xray_pneumonia.cli", *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    return run


@pytest.fixture
def without_rights() -> Iterator[None]:
    """Take from this thread and what it starts, if root runs it, the right to pass over the modes of files."""
    libc, header, held = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, held)
    kept = held[0]
    held[0] &= ~0b110  # of the effective ones CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    libc.capset(header, held)
    libc.prctl(28, 1)  # PR_SET_SECUREBITS: a program that root starts does not get the rights of root
    yield
    libc.prctl(28, 0)
    held[0] = kept
    libc.capset(header, held)


@pytest.fixture(scope="session")
def real_xrays() -> Path:
    """The public X-rays, where they are at hand."""
    if not (REAL / "chest_xray" / "train").is_dir():
        pytest.skip("the public X-rays are not at ../shared/data")
    return REAL


class PostgreSQL:
    """A cluster of its own in a temporary folder, run as postgres, which refuses to be root."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._bin, self._addresses = folder, POSTGRESQL[-1].parent, "127.0.0.1"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._run("initdb", "-D", str(folder), "-A", "trust", "-U", "postgres")
        self.control("start")
        for name in ("mlflow", "sweeps"):
            self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", name)

    def control(self, *action: str) -> None:
        options = f"-p {self.port} -c listen_addresses={self._addresses} -c unix_socket_directories={self.folder}"
        self._run("pg_ctl", "-D", str(self.folder), "-w", "-l", str(self.folder / "log"), "-o", options, *action)

    def configure(self, setting: str) -> None:
        """Add a line to its configuration, and restart."""
        with (self.folder / "postgresql.conf").open("a") as file:
            file.write(f"{setting}\n")
        self.control("-m", "immediate", "restart")

    def admit(self, network: str, *, at: str) -> None:
        """Answer a network of this machine, at an address in it."""
        self._addresses += f",{at}"
        with (self.folder / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {network} trust\n")
        self.control("-m", "immediate", "restart")

    def url(self, name: str) -> str:
        return f"postgresql+psycopg2://postgres@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), *arguments]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        subprocess.run(command, check=True, capture_output=True, cwd="/")


@pytest.fixture
def postgresql() -> Iterator[PostgreSQL]:
    """A running cluster with two empty databases, `mlflow` and `sweeps`."""
    if not POSTGRESQL:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    pytest.importorskip("psycopg2")
    folder = Path("/tmp") / f"xray-postgres-{os.getpid()}-{time.monotonic_ns()}"  # pytest's own are root's alone
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    made = PostgreSQL(folder)
    yield made
    made.control("-m", "immediate", "stop")
    shutil.rmtree(folder)
