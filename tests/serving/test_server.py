"""`xray serve`: what it answers, what it refuses, and that it is there afterwards."""

import csv
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from contextlib import ExitStack, closing, contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xray_pneumonia.data.synthetic import draw, draw_patients

TOKEN = "0123456789abcdef"


PATIENTS = list(draw_patients(10, 0))


def film(patient: int = 0) -> bytes:
    buffer = BytesIO()
    Image.fromarray((255 * draw(PATIENTS[patient], 0)).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


class Served:
    """A running server."""

    def __init__(self, process: subprocess.Popen, port: int, folder: Path):
        self.process, self.port, self.folder = process, port, folder

    def ask(self, method: str, path: str, body: bytes = b"", *, token: str = TOKEN, **headers: str):
        given = {"Authorization": f"Bearer {token}"} | {name.replace("_", "-"): one for name, one in headers.items()}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            data = answer.read()
        return answer, json.loads(data) if answer.headers.get_content_type().endswith("json") else data

    def form(self, data: bytes, *, name: str = "film.png", **fields: str):
        parts = [
            f'--X\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n' for key, value in fields.items()
        ]
        head = f'--X\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        body = "".join(parts).encode() + head.encode() + data + b"\r\n--X--\r\n"
        return self.ask("POST", "/v1/predict", body, Content_Type="multipart/form-data; boundary=X")


@contextmanager
def serving(folder: Path, *options: str, **environment: str):
    command = [
        sys.executable,
        "-m",
        "xray_pneumonia.cli",
        "serve",
        "port=0",
        "workers=1",
        f"home={folder / 'home'}",
        *options,
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}, cwd=folder
    )
    try:
        line = next(line for line in process.stdout if line.startswith("url="))
        yield Served(process, int(line.split(" ")[0].rpartition(":")[2]), folder)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("served")
    options = (f"keep={folder / 'opinions'}", "upload_mb=1", "most_waiting=8", "upload_seconds=3")
    with serving(folder, *options, XRAY_SERVE_TOKEN=TOKEN) as served:
        yield served
        assert served.process.poll() is None, "it died of a request"
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(20) == 143


def test_a_film_gets_an_answer_by_form_and_raw(server):
    answer, values = server.form(film())
    assert answer.status == 200
    assert values["decision"]
    assert values["label"] in {"NORMAL", "PNEUMONIA"}
    assert 0 <= values["probability"] <= 1
    assert server.ask("POST", "/v1/predict", film())[1] == values


def test_a_prevalence_changes_the_probability_and_its_sentence_and_never_the_decision(server):
    """Over odds, as computed by hand: those at the new prevalence times those of the evidence."""
    own = server.ask("POST", "/v1/predict", film())[1]
    for prevalence in (0.001, 0.05, own["prevalence"], 0.9):
        shown = server.form(film(), prevalence=str(prevalence))[1]
        assert shown == server.ask("POST", f"/v1/predict?prevalence={prevalence}", film())[1]
        assert all(shown[name] == own[name] for name in ("decision", "label", "reason", "kind", "sha256", "rests_on"))
        odds = own["probability"] / (1 - own["probability"]) / (own["prevalence"] / (1 - own["prevalence"]))
        odds *= prevalence / (1 - prevalence)
        assert shown["probability"] == pytest.approx(odds / (1 + odds), abs=1e-9)
        assert (shown["probability"] >= shown["operating_point"]) == (shown["label"] == "PNEUMONIA")
        share = f"{100 * prevalence:.0f}" if prevalence > 0.01 else "0.1"
        assert f"among patients of whom {share} in 100 have pneumonia" in shown["words"]
    assert "patients" in own["rests_on"]


def test_a_film_is_rendered_and_explained(server):
    answer, data = server.ask("POST", "/v1/image", film())
    assert int(answer.headers["x-film-width"]) == Image.open(BytesIO(film())).width
    assert Image.open(BytesIO(data)).size == (1024, 1024)
    answer, data = server.ask("POST", "/v1/heatmap", film(1))
    assert answer.status == 200
    assert answer.headers["content-type"] == "image/png" or data["reason"]


def test_page_health_models_metrics_and_openapi(server):
    answer, page = server.ask("GET", "/", token="")
    assert b"Second opinion" in page
    assert "unsafe-inline" not in answer.headers["content-security-policy"]
    assert server.ask("GET", "/health", token="")[1]["status"] == "ok"
    (model,) = server.ask("GET", "/v1/models")[1]["models"]
    assert model["classes"] == ["NORMAL", "PNEUMONIA"]
    assert "not trained on" in model["evidence"]
    assert b"xray_answers_total" in server.ask("GET", "/metrics")[1]
    paths = server.ask("GET", "/openapi.json")[1]["paths"]
    assert "example" in paths["/v1/predict"]["post"]["responses"]["200"]["content"]["application/json"]


def bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    head = (60000).to_bytes(4) * 2 + bytes([8, 0, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "empty_file"), (b"text", "not_an_image"), (film()[:400], "truncated"), (bomb(), "too_many_pixels")],
)
def test_what_cannot_be_read_says_why(server, data: bytes, code: str):
    answer, problem = server.form(data)
    assert (answer.status, problem["code"]) == (422, code)
    assert problem["detail"]
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("status", "code", "request_"),
    [
        (401, "no_token", {"token": ""}),
        (401, "no_token", {"token": TOKEN[:-1]}),
        (421, "wrong_host", {"Host": "evil.example"}),  # DNS rebinding
        (421, "wrong_host", {"Host": "[::ffff]:1"}),
        (403, "other_origin", {"Origin": "http://evil.example"}),
        (403, "other_origin", {"Origin": "null"}),
        (403, "other_origin", {"Sec_Fetch_Site": "cross-site"}),
        (413, "too_large", {"body": b"x", "Content_Length": "2000000"}),
        (400, "no_file", {"body": b"--X--\r\n", "Content_Type": "multipart/form-data; boundary=X"}),
        (400, None, {"body": b"junk", "Content_Type": "multipart/form-data; boundary=X"}),
        (400, "two_lengths", {"body": b"1\r\nx\r\n0\r\n\r\n", "Content_Length": "11", "Transfer_Encoding": "chunked"}),
        (400, "bad_opinion", {"path": "/v1/feedback", "body": b"[" * 10000}),
        (400, "prevalence", {"path": "/v1/predict?prevalence=nan"}),
        (400, "prevalence", {"path": "/v1/predict?prevalence=1"}),
        (404, "not_found", {"path": "/v1/../../etc/passwd"}),
        (404, "not_found", {"method": "GET", "path": "/static/..%2f..%2fapp.py"}),
        (405, "method_not_allowed", {"path": "/health"}),
    ],
)
def test_what_must_not_be_is_refused(server, status: int, code: str | None, request_: dict):
    request_ = {"method": "POST", "path": "/v1/predict", "body": film(), **request_}
    answer, problem = server.ask(request_.pop("method"), request_.pop("path"), request_.pop("body"), **request_)
    assert (answer.status, problem["status"]) == (status, status)
    assert code is None or problem["code"] == code


def test_a_files_name_goes_nowhere(server):
    answer, values = server.form(film(), name="../../../tmp/DOE^JANE.png")
    assert answer.status == 200
    written = "".join(
        path.read_text() for path in server.folder.rglob("*") if path.is_file() and path.suffix != ".lock"
    )
    assert "DOE" not in written
    assert values["sha256"] in written


def test_opinions_are_kept_by_hash_and_harmless_in_a_spreadsheet(server):
    opinion = {"sha256": "a" * 64, "opinion": "disagree", "label": "NORMAL", "note": "=cmd()\nline"}
    assert server.ask("POST", "/v1/feedback", json.dumps(opinion).encode())[0].status == 201
    place = server.folder / "opinions" / "labels.csv"
    (row,) = csv.DictReader(place.read_text().splitlines())
    assert (row["label"], row["note"], len(row["reader"])) == ("NORMAL", "'=cmd() line", 8)
    assert place.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "../x"},
        {"opinion": "maybe"},
        {"label": "CAT"},
        {"label": []},
        {"note": "x" * 501},
        {"note": {}},
        {"note": "\ud800"},
        {"answer": "x" * 9999},
        {"probability": "much"},
        {"probability": float("nan")},
        {"filler": "x" * 2**15},
        None,
    ],
)
def test_a_malformed_opinion_is_refused(server, change: dict | None):
    values = {"sha256": "a" * 64, "opinion": "agree", **change} if change else ["no object"]
    answer, problem = server.ask("POST", "/v1/feedback", json.dumps(values).encode())
    assert (answer.status, problem["code"]) == (400, "bad_opinion")


def test_too_many_at_once_are_told_to_come_again(server):
    """Uploads that trickle hold their places, and lose them in time."""
    head = (
        f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n\r\nx"
    )
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(8)]
        for one in slow:
            one.sendall(head.encode())
        time.sleep(0.3)
        answer, problem = server.ask("POST", "/v1/predict", film())
        assert (answer.status, problem["code"], answer.headers["retry-after"]) == (429, "busy", "1")
        for one in slow:
            one.settimeout(10)
            assert b" 408 " in one.recv(4096)
    assert server.ask("POST", "/v1/predict", film())[0].status == 200


def test_eight_clients_at_once_get_their_own_answers(server):
    films = [film(seed) for seed in range(8)]
    alone = [server.ask("POST", "/v1/predict", one)[1] for one in films]
    together = [{} for _ in films]

    def send(at: int) -> None:
        together[at] = server.ask("POST", "/v1/predict", films[at])[1]

    threads = [threading.Thread(target=send, args=(at,)) for at in range(len(films))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one["sha256"] for one in together] == [one["sha256"] for one in alone]
    np.testing.assert_allclose(
        [one["probability"] for one in together], [one["probability"] for one in alone], atol=1e-5
    )


def test_another_address_needs_a_token_and_a_taken_port_is_said(xray):
    refused = xray("serve", "host=0.0.0.0")
    assert refused.code == 2
    assert "XRAY_SERVE_TOKEN" in refused.err
    for audit in ("/dev/full", "/tmp"):
        refused = xray("serve", "port=0", f"audit={audit}")
        assert (refused.code, f"audit={audit}: is no file" in refused.err) == (2, True), refused.err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = xray("serve", f"port={taken.getsockname()[1]}")
    assert refused.code == 2
    assert "port=0" in refused.err
