"""Builds the web application: the page, `/v1/predict` and what belongs to it, health, metrics, OpenAPI."""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from xray_pneumonia import __version__
from xray_pneumonia.serving.guard import FAILED, Guard, Problem, Rules
from xray_pneumonia.serving.reader import Reader
from xray_pneumonia.serving.records import Journal
from xray_pneumonia.serving.schema import ANSWER, ERROR, MODELS, OPINION, UPLOAD, require_opinion

LONGEST_OPINION = 2**14  # bytes
STATIC = Path(__file__).parent / "static"
if sys.platform == "linux":  # a file without a name, which no kill leaves on the disk; its `name` is its descriptor
    UPLOAD_FILE, FOLDER = tempfile.TemporaryFile, "/proc/{}/fd"
else:
    UPLOAD_FILE, FOLDER = tempfile.NamedTemporaryFile, ""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Service:
    """What the application answers with.

    Args:
        reader: decodes and classifies.
        heat_map: film's path -> PNG with opacity, empty where there is none, and why.
        describe: a row of `reader` -> the JSON of an answer, at a prevalence or the model's own (None).
        model: what `/v1/models` says of the model, its `name` and `version` among it.
        journal: audit lines and opinions.
        films: counts the films from the archive by state, and what happened to them.
        most_waiting: requests at once; more are answered 429.
    """

    reader: Reader
    heat_map: Callable[[Path], tuple[bytes, str]]
    describe: Callable[[Mapping[str, Any], float | None], dict[str, Any]]
    model: Mapping[str, Any]
    journal: Journal
    films: Callable[[], tuple[Mapping[str, int], Mapping[str, int]]]
    most_waiting: int


@dataclass
class _Counts:
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.refused = Counter("xray_refused", "Requests refused because too many wait", registry=self.registry)
        self.seconds = Histogram("xray_answer_seconds", "From upload to answer", registry=self.registry)
        self.waiting = Gauge("xray_waiting", "Requests under way", registry=self.registry)


class _Films(Collector):
    """Counts the answers of both ports, and the films from the archive."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Read the counts when they are asked for."""
        answers = CounterMetricFamily(
            "xray_answers", "Films by port and decision or error", labels=["port", "decision"]
        )
        for names, count in dict(self._service.journal.counts).items():
            answers.add_metric(names, count)
        states, events = self._service.films()
        films = GaugeMetricFamily("xray_dicom_films", "Films from the archive by state", labels=["state"])
        for state, count in states.items():
            films.add_metric([state], count)
        happened = CounterMetricFamily("xray_dicom_events", "What happened since the start", labels=["event"])
        for event, count in dict(events).items():
            happened.add_metric([event], count)
        yield from (answers, films, happened)


def make_app(service: Service, rules: Rules) -> Guard:
    """Build the application and the guard around it."""
    app = FastAPI(title="xray serve", version=__version__, docs_url=None, redoc_url=None)
    app.state.counts = counts = _Counts()
    counts.registry.register(_Films(service))
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(Exception, _failure)
    uploads = _Uploads(service.most_waiting, counts)
    _add_reading(app, service, uploads)
    _add_opinions(app, service)
    _add_plain(app, service, counts)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return Guard(app, rules)


async def _problem(request: Request, error: Exception) -> Response:
    if not isinstance(error, Problem):
        raise error
    return Response(error.body(), error.status.value, error.headers, media_type="application/problem+json")


async def _http_problem(request: Request, error: Exception) -> Response:
    status = HTTPStatus(getattr(error, "status_code", 500))
    return await _problem(request, Problem(status, getattr(error, "detail", status.phrase), code=status.name.lower()))


async def _failure(request: Request, error: Exception) -> Response:
    return await _problem(request, FAILED)  # the guard logs it


def _add_reading(app: FastAPI, service: Service, uploads: "_Uploads") -> None:
    """Add what takes a film: the answer, the picture, the heat map."""
    upload: dict[str, Any] = {"openapi_extra": {"requestBody": UPLOAD}, "responses": ERROR}

    @app.post("/v1/predict", summary="Answer one film", **{**upload, "responses": {200: ANSWER, **ERROR}})
    async def predict(request: Request) -> Response:
        async with uploads.taken(request) as (path, fields):
            prevalence = _prevalence(fields.get("prevalence") or request.query_params.get("prevalence"))
            started = time.perf_counter()
            row = await run_in_threadpool(service.reader.read, path)
        uploads.counts.seconds.observe(time.perf_counter() - started)
        service.journal.answered(row, model=service.model["version"], reader=request.scope["reader"])
        if row.get("error"):
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, row["message"], code=row["error"])
        return JSONResponse(service.describe(row, prevalence))

    @app.post("/v1/image", summary="Render one film as a gray PNG of 1024 x 1024 pixels", **upload)
    async def image(request: Request) -> Response:
        async with uploads.taken(request) as (path, _):
            data, attempt = await run_in_threadpool(service.reader.picture, path)
        if not data:
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, attempt.message, code=attempt.code)
        sides = {"x-film-width": str(attempt.width), "x-film-height": str(attempt.height)}
        return Response(data, media_type="image/png", headers=sides)

    @app.post(
        "/v1/heatmap", summary="Draw where the evidence for the positive class lies, as a PNG to overlay", **upload
    )
    async def heat_map(request: Request) -> Response:
        async with uploads.taken(request) as (path, _):
            data, reason = await run_in_threadpool(service.heat_map, path)
        if not data:
            return JSONResponse({"reason": reason})
        return Response(data, media_type="image/png")


def _add_opinions(app: FastAPI, service: Service) -> None:
    """Add what a reader says to an answer."""

    @app.post(
        "/v1/feedback", summary="Keep a reader's opinion", openapi_extra={"requestBody": OPINION}, responses=ERROR
    )
    async def feedback(request: Request) -> Response:
        if service.journal.keep is None:
            detail = "the server keeps nothing; start it with keep=DIR, or use the page's own download"
            raise Problem(HTTPStatus.CONFLICT, detail, code="not_kept")
        try:
            values = require_opinion(json.loads(await _short_body(request)), service.model["classes"])
        except (ValueError, RecursionError) as error:
            raise Problem(HTTPStatus.BAD_REQUEST, str(error), code="bad_opinion") from error
        model, reader = service.model["version"], request.scope["reader"]
        await run_in_threadpool(service.journal.opinion, values, model=model, reader=reader)
        return JSONResponse({"kept": True}, HTTPStatus.CREATED)


def _add_plain(app: FastAPI, service: Service, counts: _Counts) -> None:
    """Add what takes no film."""

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", media_type="text/html; charset=utf-8")

    @app.get("/v1/models", summary="Describe the model and what its figures rest on", responses={200: MODELS})
    async def models() -> Response:
        return JSONResponse({"models": [{**service.model, "keeps_feedback": service.journal.keep is not None}]})

    @app.get("/health", summary="Tell whether the server answers")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": service.model["name"], "version": __version__}

    @app.get("/metrics", summary="Counts in the text format of Prometheus")
    async def metrics() -> Response:
        return Response(generate_latest(counts.registry), media_type="text/plain; version=0.0.4; charset=utf-8")


def _prevalence(text: Any) -> float | None:
    if text in (None, ""):
        return None
    try:
        value = float(str(text))
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise Problem(
            HTTPStatus.BAD_REQUEST, f"prevalence={ascii(text)[:40]}: give a number between 0 and 1", code="prevalence"
        )
    return value


class _Uploads:
    """Takes uploads into files that live as long as their request; refuses what would have to wait too long."""

    def __init__(self, most: int, counts: _Counts) -> None:
        self._most, self._now, self.counts = most, 0, counts

    @asynccontextmanager
    async def taken(self, request: Request) -> AsyncIterator[tuple[Path, dict[str, str]]]:
        """Yield the uploaded file and the other fields of the form."""
        if self._now >= self._most:
            self.counts.refused.inc()
            detail = f"{self._now} requests are under way; try again in a second"
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, detail, code="busy", headers={"retry-after": "1"})
        self._now += 1
        self.counts.waiting.set(self._now)
        try:
            with UPLOAD_FILE() as file:
                fields = await _receive(request, file.write)
                file.flush()
                yield Path(FOLDER.format(os.getpid()), str(file.name)), fields
        finally:
            self._now -= 1
            self.counts.waiting.set(self._now)


async def _short_body(request: Request) -> bytes:
    """Read a body that is no film.

    Raises:
        ValueError: it is longer than any opinion.
    """
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > LONGEST_OPINION:
            raise ValueError(f"at most {LONGEST_OPINION} bytes are read")
    return body


async def _receive(request: Request, write: Callable[[bytes], Any]) -> dict[str, str]:
    """Write the body, or the one file of a form, in pieces; returns the other fields."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        async for piece in request.stream():
            write(piece)
        return {}
    async with request.form(max_files=1, max_fields=4) as form:
        file = form.get("file")
        if file is None or isinstance(file, str):
            raise Problem(HTTPStatus.BAD_REQUEST, "the form has no file in its field `file`", code="no_file")
        while piece := await file.read(2**20):
            await asyncio.to_thread(write, piece)
        return {name: value for name, value in form.items() if isinstance(value, str)}
