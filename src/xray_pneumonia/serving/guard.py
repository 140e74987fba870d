"""Protects the server: Host and Origin, the token, the size and pace of uploads, security headers, errors as RFC 9457.

Every refusal is a `Problem`, answered as `application/problem+json` (RFC 9457).
"""

import asyncio
import hashlib
import hmac
import json
import logging
import re
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",  # an answer is a patient's
}
HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:@/\[\]]+))(?::\d{1,5})?")
SAFE = {"GET", "HEAD", "OPTIONS"}
PRIVATE = ("/v1/", "/metrics")  # what needs the token, where there is one
log = logging.getLogger(__name__)


class Problem(Exception):
    """Refuses a request.

    Args:
        status: of HTTP.
        detail: what is wrong and what to do.
        code: a short name of the reason.
        headers: besides those of every answer.
    """

    def __init__(self, status: HTTPStatus, detail: str, *, code: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.code, self.headers = status, code, headers or {}

    def body(self) -> bytes:
        """Write it as RFC 9457 says."""
        values = {"type": "about:blank", "title": self.status.phrase, "status": self.status.value}
        return json.dumps({**values, "detail": str(self), "code": self.code}, ensure_ascii=True).encode()


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the guard lets through."""

    hosts: frozenset[str]  # names under which the server may be addressed, without a port
    tokens: tuple[str, ...]  # of which each request to the interface must carry one; empty: none is needed
    most_bytes: int  # of a request's body
    seconds: float  # in which a body must arrive


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, then pass it on with a limited body; every answer gets the security headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                mine = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *mine]}
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, self._limited(scope, receive), send_guarded)
        except ClientDisconnect:  # nobody waits for an answer
            return
        except Exception as error:
            if not isinstance(error, Problem):
                _log_failure(error)
                error = FAILED
            if not started:  # else the answer is under way, and the server closes the connection
                await _answer(error, send_guarded)

    def _check(self, scope: Scope) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if _name(host) not in self._rules.hosts:
            raise Problem(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"this server is not {ascii(host)[:80]}; add the name to allowed_hosts=[...] if it is",
                code="wrong_host",
            )
        if scope["method"] not in SAFE and not _same_origin(headers, host):
            raise Problem(HTTPStatus.FORBIDDEN, "the request comes from another site", code="other_origin")
        if "transfer-encoding" in headers and "content-length" in headers:  # two servers might read two requests
            raise Problem(HTTPStatus.BAD_REQUEST, "send one length, not two", code="two_lengths", headers=CLOSE)
        scope["reader"] = self._authenticated(headers, scope["path"])
        if int(headers.get("content-length", "0") or 0) > self._rules.most_bytes:
            raise self._too_large()

    def _authenticated(self, headers: dict[str, str], path: str) -> str:
        """Find whose token a request carries: the first eight digits of the token's hash, or nothing."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        secret = given.encode("latin-1") if scheme.lower() == "bearer" else b""
        fitting = [token for token in self._rules.tokens if hmac.compare_digest(token.encode(), secret)]
        if self._rules.tokens and not fitting and path.startswith(PRIVATE):
            headers = {"www-authenticate": "Bearer"}
            detail = "send the header Authorization: Bearer TOKEN with the server's XRAY_SERVE_TOKEN"
            raise Problem(HTTPStatus.UNAUTHORIZED, detail, code="no_token", headers=headers)
        return hashlib.sha256(fitting[0].encode()).hexdigest()[:8] if fitting else ""

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Count the bytes of a body, and give up on one that takes too long."""
        count, end = 0, asyncio.get_running_loop().time() + self._rules.seconds
        complete = False

        async def limited() -> Message:
            nonlocal count, complete
            if complete:  # what follows is the end of the connection, which may be long in coming
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError as error:
                detail = f"the upload took more than {self._rules.seconds:g} s"
                raise Problem(HTTPStatus.REQUEST_TIMEOUT, detail, code="slow", headers=CLOSE) from error
            count += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if count > self._rules.most_bytes:
                raise self._too_large()
            return message

        return limited

    def _too_large(self) -> Problem:
        most = f"{self._rules.most_bytes // 2**20} MB"
        return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {most} are read", code="too_large", headers=CLOSE)


CLOSE = {"connection": "close"}
FAILED = Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed; see its log", code="failed")


def host_names(host: str, more: Iterable[str]) -> frozenset[str]:
    """List the names under which a server that listens on `host` may be addressed."""
    return frozenset({"127.0.0.1", "localhost", "::1", host.lower(), *(name.lower() for name in more)})


def _name(host: str) -> str:
    """Take the port from a Host header; IPv6 addresses stand in brackets; of anything else there is no name."""
    found = HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else ""


def _same_origin(headers: dict[str, str], host: str) -> bool:
    """Tell whether a request comes from our own page or from no page at all."""
    if headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        return False
    origin = headers.get("origin")
    return origin in {None, f"http://{host}", f"https://{host}"}


def _log_failure(error: BaseException) -> None:
    """Log where a request failed, without the texts of the exceptions, which may repeat a patient's data."""
    frames = "".join(traceback.format_tb(error.__traceback__)[-3:])
    log.error("a request failed (%s)\n%s", type(error).__name__, frames)


async def _answer(problem: Problem, send: Any) -> None:
    body = problem.body()
    headers = {"content-type": "application/problem+json", "content-length": str(len(body)), **problem.headers}
    lines = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status.value, "headers": lines})
    await send({"type": "http.response.body", "body": body})
