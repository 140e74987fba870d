"""Classifies what a store raises as temporary or permanent, and bounds the time it may take to answer."""

import os
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

from xray_pneumonia.errors import InputError
from xray_pneumonia.masking import masked

START = 25.0  # seconds in which a store over the network must have answered once
PERMANENT_CODES = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "ENDPOINT_NOT_FOUND", "NOT_FOUND", "BAD_REQUEST"})
PERMANENT_WORDS = {  # in what a database, a server or an object store says -> the cure
    "Invalid Host header": "have it answer to this name: `mlflow server --allowed-hosts NAME:PORT`, as in the address",
    "Unable to locate credentials": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "AccessDenied": "let this login write to the bucket",
    "NoSuchBucket": "make the bucket, or name another one",
    "password authentication failed": "check user and password",
    "no pg_hba.conf entry": "have the server let this machine in",
    "does not exist": "make the database or role first: createdb NAME",
    "out-of-date database schema": "back it up, then `mlflow db upgrade URI`, or install the newer MLflow that made it",
    "Can't locate revision": "it was made by a newer MLflow; install that one, or name another store",
    "sqlite3.OperationalError) table": "it was killed while its tables were made; move it away, and a new one is made",
    "malformed": "restore it from a backup, or move it away",
    "file is not a database": "restore it from a backup, or move it away",
    "readonly database": "make it and its folder writable, or name another store",
    "unable to open database file": "make its folder and let it be writable",
}
EXTRAS = {"boto3": "s3", "botocore": "s3", "psycopg2": "postgresql"}  # missing module -> the extra that installs it
POOL_WORDS = ("too many clients", "connection slots are reserved", "QueuePool limit")
POOL_CURE = "raise max_connections of the database, or lower MLFLOW_SQLALCHEMYSTORE_POOL_SIZE and the number of workers"
ASKED_AGAIN = 30.0  # seconds for which a store that did not answer is not waited for a second time
T = TypeVar("T")
_unavailable: dict[str, tuple[float, str]] = {}  # URI -> when it did not answer, and the message


class StoreUnavailable(InputError):
    """The store does not answer; it may come back."""


def first_line(error: BaseException) -> str:
    """Shorten a store's message to one line without its password; add the cure where its connections run out."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("(raised as a")]
    line = masked((lines or [type(error).__name__])[0])
    core = re.search(r"\(Caused by (.*)\)$", line)  # urllib3 wraps what happened in three layers of what it tried
    message = (core.group(1) if core else line)[:300]
    return f"{message}; {POOL_CURE}" if any(word in str(error) for word in POOL_WORDS) else message


def refuses_value(error: BaseException) -> bool:
    """Tell whether the store will never take the value that it was sent, however often it is sent."""
    return getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE"


def is_unknown(error: BaseException) -> bool:
    """Tell whether the store knows no such run, experiment or model."""
    return getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"


def classified(error: BaseException, *, uri: str) -> InputError:
    """Turn any error of a store into StoreUnavailable (temporary) or another InputError (permanent, with its cure)."""
    if isinstance(error, InputError):
        return error
    shown, message = f"tracking.uri={masked(uri)}", first_line(error) + _proxied(uri)
    for word, cure in PERMANENT_WORDS.items():
        if word in message:
            return InputError(f"{shown}: the store cannot be used: {message}; {cure}")
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get(error.name or "")
        return InputError(f"{shown}: {message}; pip install {f'xray-pneumonia[{extra}]' if extra else error.name}")
    if getattr(error, "error_code", "") in PERMANENT_CODES:
        return InputError(f"{shown}: the server answers, but not as MLflow would: {message}; check address and login")
    if refuses_value(error):
        return InputError(f"{shown}: the store refuses this: {message}")
    return StoreUnavailable(f"{shown}: the store does not answer: {message}")


def _proxied(uri: str) -> str:
    """Name the variable by which requests for a store take a proxy, which may not reach a local store."""
    scheme, host = urlsplit(uri).scheme, urlsplit(uri).hostname or ""
    names = [name for name in os.environ if name.lower() in {f"{scheme}_proxy", "all_proxy"} and os.environ[name]]
    if not names or not scheme.startswith("http") or proxy_bypass(host):
        return ""
    return f"; {names[0]}={masked(os.environ[names[0]])} sends this through a proxy: NO_PROXY={host} goes past it"


def query(uri: str, call: Callable[[], T]) -> T:
    """Ask the store something at the start of a command.

    Raises:
        StoreUnavailable: it does not answer.
        InputError: it cannot be used.
    """
    try:
        # SQLite has its own time limit, and a first start creates tables for longer than a server may be silent.
        answer = call() if uri.startswith("sqlite:") else within(START, call, name=f"tracking.uri={masked(uri)}")
    except Exception as error:  # each kind of store has its own
        refusal = classified(error, uri=uri)
        if isinstance(refusal, StoreUnavailable):
            _unavailable[uri] = time.monotonic(), str(refusal)
        raise refusal from error
    _unavailable.pop(uri, None)
    return answer


def require_not_just_unavailable(uri: str) -> None:
    """Raise StoreUnavailable for what did not answer a moment ago, so that a command that asks twice waits once."""
    when, message = _unavailable.pop(uri, (0.0, ""))
    if message and time.monotonic() - when < ASKED_AGAIN:
        raise StoreUnavailable(message)


def within(seconds: float, call: Callable[[], T], *, name: str) -> T:
    """Return the call's result; raise StoreUnavailable where there is none in time: some drivers wait for ever."""
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="store query", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise StoreUnavailable(f"{name}: the store does not answer: nothing came within {seconds:g} s")
    return results[0]
