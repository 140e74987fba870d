"""Attacks on the two ports of `xray serve`: none gets through, and both ports answer afterwards.

What needs no time is in `test_server.py` and `tests/pacs/test_node.py`; the threats are those of `docs/reliability.md`.
"""

import gc
import gzip
import json
import random
import socket
import struct
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from pynetdicom import AE
from tests.pacs.test_node import film as dicom_film
from tests.pacs.test_node import send, wait
from tests.pacs.test_orthanc import free_ports
from tests.serving.test_server import TOKEN, film, serving

HEAD = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
FORM = "Content-Type: multipart/form-data; boundary=X\r\n"


def post(body: bytes, *, path: str = "/v1/predict", head: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\n{HEAD}{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def part(name: str, value: str = "x") -> bytes:
    return f'--X\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def get(path: str, more: str = "", *, head: str = HEAD) -> bytes:
    return f"GET {path} HTTP/1.1\r\n{head}{more}\r\n".encode()


def chunked(body: str) -> bytes:
    return f"POST /v1/predict HTTP/1.1\r\n{HEAD}Transfer-Encoding: chunked\r\n\r\n{body}".encode()


RAW = {
    "HTTP/0.9": (b"GET /v1/models\r\n\r\n", {400}),
    "no host": (b"GET /v1/models HTTP/1.1\r\n\r\n", {400}),
    "no host in HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", {421}),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", {400}),
    "two lengths": (post(b"x", head="Content-Length: 5\r\n"), {400}),
    "chunked and length": (post(b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n", head="Transfer-Encoding: chunked\r\n"), {400}),
    "unknown encoding": (f"POST / HTTP/1.1\r\n{HEAD}Transfer-Encoding: xchunked\r\n\r\n".encode(), {400, 501}),
    "chunk of no length": (f"POST / HTTP/1.1\r\n{HEAD}Transfer-Encoding: chunked\r\n\r\nZZ\r\n".encode(), {400, 405}),
    "negative length": (f"POST / HTTP/1.1\r\n{HEAD}Content-Length: -1\r\n\r\n".encode(), {400}),
    "length of 5,000 digits": (f"POST / HTTP/1.1\r\n{HEAD}Content-Length: {'9' * 5000}\r\n\r\n".encode(), {400, 413}),
    "space before the colon": (f"GET / HTTP/1.1\r\n{HEAD}X-Y : z\r\n\r\n".encode(), {400}),
    "folded header": (f"GET / HTTP/1.1\r\n{HEAD}X-Y: a\r\n b\r\n\r\n".encode(), {200, 400}),
    "line feed alone": (b"GET /health HTTP/1.1\nHost: localhost\nX: a\rb\n\n", {400}),
    "zero byte": (f"GET /\0 HTTP/1.1\r\n{HEAD}\r\n".encode(), {400}),
    "bad UTF-8 in the path": (f"GET /%ff%fe HTTP/1.1\r\n{HEAD}\r\n".encode(), {404}),
    "bad UTF-8 in a header": (b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\xfe\r\n\r\n", {200}),
    "very long URL": (f"GET /{'a' * 200000} HTTP/1.1\r\n{HEAD}\r\n".encode(), {400}),
    "many headers": (f"GET / HTTP/1.1\r\n{HEAD}{'X: y' * 40000}\r\n\r\n".encode(), {400}),
    "encoded traversal": (f"GET /static/%2e%2e%2f%2e%2e%2fapp.py HTTP/1.1\r\n{HEAD}\r\n".encode(), {404}),
    "backslash traversal": (f"GET /static/..\\..\\app.py HTTP/1.1\r\n{HEAD}\r\n".encode(), {404}),
    "absolute URL of another host": (f"GET http://evil/ HTTP/1.1\r\n{HEAD}\r\n".encode(), {404}),
    "CONNECT": (f"CONNECT evil:443 HTTP/1.1\r\n{HEAD}\r\n".encode(), {404, 405, 403}),
    "TRACE": (f"TRACE / HTTP/1.1\r\n{HEAD}\r\n".encode(), {405}),
    "web socket": (f"GET / HTTP/1.1\r\n{HEAD}Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n".encode(), {200, 400}),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), {400}),
    "rebinding": (b"GET /v1/models HTTP/1.1\r\nHost: evil.example:80\r\n\r\n", {421}),
    "rebinding by a likely name": (b"GET / HTTP/1.1\r\nHost: localhost.evil.example\r\n\r\n", {421}),
    "forgery by a form": (post(b"x", head="Origin: http://evil.example\r\n"), {403}),
    "forgery by a frame": (post(b"x", head="Sec-Fetch-Site: same-site\r\n"), {403}),
    "many files": (post(b"".join(part(f'f{at}"; filename="x') for at in range(2000)) + b"--X--", head=FORM), {400}),
    "many fields": (post(b"".join(part(f"f{at}") for at in range(20000)) + b"--X--\r\n", head=FORM), {400}),
    "long field": (post(part("file", "x" * 2**20 * 2) + b"--X--\r\n", head=FORM), {400, 413}),
    "long part's head": (post(b'--X\r\nContent-Disposition: form-data; name="' + b"a" * 500000, head=FORM), {400}),
    "no boundary": (post(b"x", head="Content-Type: multipart/form-data\r\n"), {400}),
    "dashes for a boundary": (post(b"-" * 10**6, head=FORM), {400}),
    "path in a file's name": (post(part('file"; filename="../../../etc/x', "x") + b"--X--\r\n", head=FORM), {422}),
    "deep JSON": (post(b'{"note":' * 5000, path="/v1/feedback"), {400}),
    "huge JSON": (post(b'"' + b"x" * 900000 + b'"', path="/v1/feedback"), {400}),
    "huge number": (post(b'{"probability":' + b"9" * 9000 + b"}", path="/v1/feedback"), {400}),
    "prevalence that is code": (post(film(), path="/v1/predict?prevalence=__import__('os')"), {400}),
    "prevalence of nothing": (post(film(), path="/v1/predict?prevalence=1e-400"), {400}),
    "thousands of ranges": (get("/static/app.js", f"Range: bytes={'0-0,' * 12000}0-0\r\n"), {200}),
    "negative range": (get("/static/app.js", f"Range: bytes=-{'9' * 99}\r\n"), {206}),
    "packed bomb": (post(gzip.compress(bytes(10**8)), head="Content-Encoding: gzip\r\n"), {422}),
    "length with a sign": (f"POST /v1/predict HTTP/1.1\r\n{HEAD}Content-Length: +5\r\n\r\nhello".encode(), {400}),
    "lengths in a list": (f"POST /v1/predict HTTP/1.1\r\n{HEAD}Content-Length: 5, 6\r\n\r\nhello".encode(), {400}),
    "chunk's long extension": (chunked(f"5;{'a' * 10**5}\r\nhello\r\n0\r\n\r\n"), {400, 422}),
    "long trailers": (chunked(f"0\r\n{'X: y' * 60000}\r\n\r\n"), {400}),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {421, 505}),
    "user in the host": (b"GET / HTTP/1.1\r\nHost: localhost:80@evil.example\r\n\r\n", {421}),
    "text after brackets": (b"GET / HTTP/1.1\r\nHost: [::1]evil.example\r\n\r\n", {421}),
    "forwarded host": (b"GET / HTTP/1.1\r\nHost: evil\r\nX-Forwarded-Host: localhost\r\n\r\n", {421}),
    "origin of a file": (post(b"x", head="Origin: file://localhost\r\n"), {403}),
    "token in the query": (get(f"/v1/models?token={TOKEN}", head="Host: localhost\r\n"), {401}),
    "token without its scheme": (get("/v1/models", head=f"Host: localhost\r\nAuthorization: {TOKEN}\r\n"), {401}),
    "private path in disguise": (get("/%76%31%2Fmodels", head="Host: localhost\r\n"), {401}),
    "private path behind a slash": (get("//v1/models", head="Host: localhost\r\n"), {404}),
    "private path through static": (get("/static/../v1/models", head="Host: localhost\r\n"), {404}),
    "another charset of a form": (
        post(part("prevalence") + b"--X--\r\n", head=FORM[:-2] + "; charset=zlib\r\n"),
        {400},
    ),
    "opinion in wide digits": (post(json.dumps({"sha256": "\uff11" * 64}).encode(), path="/v1/feedback"), {400}),
}


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def request(*, context: int = 1, called: bytes = b"XRAY", longest: int = 2**14, more: bytes = b"") -> bytes:
    """An association request for C-ECHO."""
    syntax = item(0x30, b"1.2.840.10008.1.1") + item(0x40, b"1.2.840.10008.1.2")
    body = b"\0\1\0\0" + called.ljust(16) + b"MODALITY".ljust(16) + bytes(32) + item(0x10, b"1.2.840.10008.3.1.1.1")
    body += item(0x20, bytes([context, 0, 0, 0]) + syntax) + item(0x50, item(0x51, longest.to_bytes(4)) + more)
    return struct.pack(">BBL", 1, 0, len(body)) + body


def fragment(data: bytes, *, context: int = 1, flags: int = 3) -> bytes:
    return struct.pack(">BBLLBB", 4, 0, len(data) + 6, len(data) + 2, context, flags) + data


ECHO = bytes.fromhex(
    "00000000 04000000 38000000 00000200 12000000 312e322e3834302e31303030382e312e3100 00000001 02000000 3000"
    "00001001 02000000 0100 00000008 02000000 0101"
)
PDUS = {
    "the longest PDU is shorter than its head": [request(longest=5), fragment(ECHO)],
    "the longest PDU holds one byte": [request(longest=7), fragment(ECHO)],
    "an even context": [request(context=2)],
    "control letters in a title": [request(called=b"XRAY\n\x1b[2J")],
    "60,000 letters of user identity": [request(more=item(0x58, b"\2\1\xea\x60" + b"x" * 60000 + b"\0\0"))],
    "two requests": [request(), request()],
    "an acceptance": [b"\2" + request()[1:]],
    "a release before a request": [b"\5\0\0\0\0\4\0\0\0\0"],
    "a context that was never agreed": [request(), fragment(ECHO, context=77)],
    "data without a command": [request(), fragment(b"x" * 100, flags=2)],
    "a command that is none": [request(), fragment(b"\xff" * 5000)],
    "a command of an unknown kind": [request(), fragment(ECHO.replace(b"\x30\0", b"\x77\x77", 1))],
    "C-FIND without an identifier": [request(), fragment(ECHO.replace(b"\x30\0", b"\x20\0", 1))],
    "a fragment that claims 2 GB": [request(), struct.pack(">BBLLBB", 4, 0, 20, 2**31, 1, 3) + bytes(14)],
    "2,000 echoes at once": [request(), fragment(ECHO) * 2000],
}


def exchange(port: int, parts: list[bytes]) -> None:
    """Send parts, each after the answer to the one before."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as peer:
        for data in parts:
            peer.sendall(data)
            peer.recv(2**16)


def ask(port: int, data: bytes, seconds: float = 20.0) -> int:
    """Send bytes; returns the status of the answer, 0 where the connection is closed without one."""
    with socket.create_connection(("127.0.0.1", port), seconds) as peer:
        with suppress(ConnectionError):
            peer.sendall(data)
        with suppress(ConnectionError):
            answer = peer.recv(4096)
            return int(answer.split(b" ")[1]) if answer else 0
    return 0


def fuzz(port: int, rng: random.Random, count: int) -> None:
    """Send an association request with flipped, cut and repeated bytes."""
    head = b"\0\1\0\0" + b"XRAY".ljust(16) + b"MODALITY".ljust(16) + bytes(32)
    items = b"\x10\0\0\x15" + b"1.2.840.10008.3.1.1.1" + b"\x50\0\0\x08\x51\0\0\x04\0\0\x40\0"
    for _ in range(count):
        body = bytearray(head + items)
        for _ in range(rng.randrange(1, 8)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        body = body[: rng.randrange(len(body) + 1)] * rng.choice((1, 1, 2, 50))
        length = rng.choice((len(body), len(body), 0, 2**31, len(body) + 9))
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as peer:
            peer.sendall(struct.pack(">BBL", rng.choice((1, 1, 1, 4, 5, 7, 200)), 0, length) + body)
            peer.settimeout(0.2)
            peer.recv(100)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sockets of refused clients
def test_nothing_gets_through_and_both_ports_answer_afterwards(tmp_path):
    (dicom,) = free_ports(1)
    options = (f"dicom.port={dicom}", "dicom.allow=[MODALITY@127.0.0.1]", "dicom.reply_to=A@127.0.0.1:1")
    options += (f"keep={tmp_path / 'kept'}", "upload_mb=3", "upload_seconds=4", "dicom.settle=600")
    with serving(tmp_path, *options, XRAY_SERVE_TOKEN=TOKEN) as server:
        wrong = {}
        for name, (data, expected) in RAW.items():
            status = ask(server.port, data)
            if status not in expected | {0}:
                wrong[name] = status
            assert server.ask("GET", "/health")[0].status == 200, name
        assert not wrong
        for at in range(40):  # who leave while they send or wait
            with socket.create_connection(("127.0.0.1", server.port)) as peer:
                peer.sendall(post(film())[: -50 * (at % 2) or None])
        wait(lambda: b"xray_waiting 0.0" in server.ask("GET", "/metrics")[1])
        with ExitStack() as stack:  # slow heads, slow bodies, slow readers and idle connections, all at once
            crowd = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(500)]
            for at, peer in enumerate(crowd[:60]):
                with suppress(OSError):
                    peer.sendall((post(b"x" * 99)[:-98], b"GET / HT", post(film(), path="/v1/image") * 4)[at % 3])
            answer, values = server.ask("POST", "/v1/predict", film())
            assert answer.status == 200, values
            time.sleep(16)
            assert sum(open_(peer) for peer in crowd) <= 20, "slow and idle connections stay"
        fuzz(dicom, random.Random(0), 150)
        for parts in PDUS.values():
            exchange(dicom, parts)
            wait(lambda: echo(dicom), 60)
        with ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(socket.create_connection(("127.0.0.1", dicom)))
        before = megabytes(server.process.pid)
        flood(dicom)
        assert megabytes(server.process.pid) < before + 200
        wait(lambda: echo(dicom), 60)
        assert send(dicom, dicom_film(), title="STRANGER") == [None]
        assert send(dicom, dicom_film()) == [0]
        assert server.form(film())[0].status == 200
        assert server.process.poll() is None
    gc.collect()  # within this test, whose filter ignores the sockets of refused clients
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and "films" not in path.name]
    assert not [path for path in kept if "evil" in path.read_bytes().decode("latin-1")]
    assert all(json.loads(line)["reader"] for line in (tmp_path / "home/serve/audit.jsonl").read_text().splitlines())


def open_(peer: socket.socket) -> bool:
    """Tell whether the server has left a connection open."""
    peer.settimeout(0.01)
    try:
        while data := peer.recv(2**16):
            pass
    except TimeoutError:
        return True
    except OSError:
        return False
    return bool(data)


def echo(port: int) -> bool:
    entity = AE("MODALITY")
    entity.add_requested_context("1.2.840.10008.1.1")
    association = entity.associate("127.0.0.1", port, ae_title="XRAY")
    try:
        return bool(association.is_established and association.send_c_echo().Status == 0)
    finally:
        association.release()


def megabytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def flood(port: int) -> None:
    """Send PDUs that claim 4 GB, from several peers."""

    def one() -> None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as peer:
            peer.sendall(b"\x04\0\xff\xff\xff\xff")
            for _ in range(100):
                peer.sendall(bytes(2**20))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
