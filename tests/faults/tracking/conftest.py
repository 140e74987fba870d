"""What the fault tests break: an MLflow server of their own, a proxy with moods, training processes."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from xray_pneumonia.tracking.store import TrackingSettings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port: int) -> bool:
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2)) as connection:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False


class Server:
    """An MLflow server that can be killed, stopped and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.artifacts = folder / "artifacts"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Server":
        self.artifacts.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.artifacts)]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **quiet}
            )
        end = time.monotonic() + 120
        while not answers(self.port):
            assert time.monotonic() < end, (self.folder / "server.log").read_text()
            time.sleep(0.3)
        return self

    def signal(self, number: int) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that leave it whole."""
    made = Server(tmp_path_factory.mktemp("server"))
    yield made.start()
    made.kill()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that may be broken; not started."""
    (tmp_path / "server").mkdir()
    made = Server(tmp_path / "server")
    yield made
    made.signal(signal.SIGCONT)
    made.kill()


class Proxy(ThreadingHTTPServer):
    """Stands between a run and the server; `mood` is what it does to a request."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Moody)
        self.behind, self.mood = port, "pass"
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """Clients that gave up are what is wanted."""


class Moody(BaseHTTPRequestHandler):
    server: Proxy

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        mood = self.server.mood
        if mood == "pass":
            self.forward(body)
        elif mood == "done then cut":  # the server did it, and the answer is lost
            self.forward(body, lose=True)
        elif mood == "slow":
            time.sleep(8)
        elif mood == "cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
        elif mood == "garbage":
            self.reply(200, b"<html>welcome to the hospital's guest network</html>")
        else:
            self.reply(int(mood), b'{"error_code": "RESOURCE_EXHAUSTED", "message": "later"}', after="3600")
        self.close_connection = True

    def forward(self, body: bytes, *, lose: bool = False) -> None:
        headers = {key: value for key, value in self.headers.items() if key.lower() not in {"host", "connection"}}
        with closing(http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=30)) as connection:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        if not lose:
            self.reply(answer.status, content, kind=answer.getheader("Content-Type", "application/json"))

    def reply(self, status: int, content: bytes, *, kind: str = "application/json", after: str = "0") -> None:
        self.send_response(status)
        for key, value in (("Content-Type", kind), ("Content-Length", str(len(content))), ("Retry-After", after)):
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def proxy(shared_server: Server) -> Iterator[Proxy]:
    with Proxy(shared_server.port) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def settings():
    """Tracking settings for a URI."""

    def make(uri: str | None, *, required: bool = False, name: str = "faults") -> TrackingSettings:
        return TrackingSettings(uri=uri, experiment_name=name, run_name=None, system_metrics=False, required=required)

    return make
