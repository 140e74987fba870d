"""The application without a server: failures, metrics, and what is left of an upload."""

import asyncio
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from xray_pneumonia.serving.app import Service, make_app
from xray_pneumonia.serving.guard import Guard, Rules
from xray_pneumonia.serving.records import COLUMNS, DICOM, Journal

SECRET = "DOE^JANE"
ROW = {"decision": "normal", "probability": 0.1, "sha256": "a" * 64}


def make(folder: Path, read, describe=lambda row, prevalence: dict(row)) -> Guard:
    service = Service(
        reader=SimpleNamespace(read=read),
        heat_map=lambda path: (b"", "none"),
        describe=describe,
        model={"name": "final", "version": "1", "classes": ["NORMAL", "PNEUMONIA"]},
        journal=Journal(folder / "audit.jsonl", folder / "kept"),
        films=lambda: ({"received": 3, "sent": 2}, {"failed_sends": 1}),
        most_waiting=2,
    )
    return make_app(service, Rules(hosts=frozenset({"x"}), tokens=(), most_bytes=99, seconds=9.0))


def ask(app: Guard, path: str, body: bytes | None = None) -> tuple[int, dict[str, str], str]:
    sent: list[dict] = []

    async def receive() -> dict:
        return {"type": "http.request", "body": body or b"", "more_body": False}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET" if body is None else "POST", "path": path, "raw_path": path.encode()}
    scope |= {"headers": [(b"host", b"x")], "query_string": b"", "http_version": "1.1", "scheme": "http"}
    asyncio.run(app(scope, receive, send))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(one.get("body", b"") for one in sent).decode()


@pytest.mark.parametrize("where", ["read", "describe"])
def test_a_failure_is_a_problem_that_repeats_nothing_of_a_patient(tmp_path, caplog, where):
    def fail(*_):
        raise RuntimeError(f"/films/{SECRET}.dcm: {SECRET}")

    app = make(tmp_path, **{"read": lambda path: ROW, where: fail})
    for _ in range(3):  # places are given back: only two may wait
        status, headers, body = ask(app, "/v1/predict", b"film")
        assert (status, headers["content-type"]) == (500, "application/problem+json")
        assert json.loads(body) | {"detail": ""} == {
            **{"type": "about:blank", "title": "Internal Server Error", "status": 500, "detail": "", "code": "failed"}
        }
        assert "content-security-policy" in headers
        assert SECRET not in body + caplog.text
        assert "Traceback" not in body
        assert ".py" not in body
    assert "RuntimeError" in caplog.text
    assert "in fail" in caplog.text
    assert ask(app, "/health")[0] == 200


def test_an_upload_has_no_name_on_the_disk_that_a_kill_could_leave(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    seen = []

    def read(path: Path) -> dict:
        seen.append((path.read_bytes(), [*(tmp_path / "temporary").iterdir()]))
        return ROW

    assert ask(make(tmp_path, read), "/v1/predict", b"film")[0] == 200
    assert seen == [(b"film", [])]


def test_metrics_count_the_films_of_both_ports(tmp_path):
    app = make(tmp_path, lambda path: ROW)
    ask(app, "/v1/predict", b"film")
    journal = Journal(tmp_path / "audit.jsonl", None)
    journal.answered({"error": "truncated"}, model="1", reader=DICOM)
    assert journal.counts == {("dicom", "truncated"): 1}
    text = ask(app, "/metrics")[2]
    for line in (
        'xray_answers_total{decision="normal",port="http"} 1.0',
        'xray_dicom_films{state="received"} 3.0',
        'xray_dicom_events_total{event="failed_sends"} 1.0',
        "xray_waiting 0.0",
    ):
        assert line in text


def test_a_line_that_was_cut_spoils_no_other_and_none_is_left_half_written(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "audit.jsonl", tmp_path)
    opinion = {"sha256": "a" * 64, "opinion": "agree", "label": "NORMAL"}
    (tmp_path / "labels.csv").write_text(",".join(COLUMNS) + f"\n{'b' * 64},NOR")
    journal.opinion(opinion, model="1", reader="")
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    assert [line[:1] for line in lines] == ["s", "b", "a"]
    full = Path("/dev/full")
    if full.exists():
        with pytest.raises(OSError, match="No space"):
            journal._append(full, "a line\n")
