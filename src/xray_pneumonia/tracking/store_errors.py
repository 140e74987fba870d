"""Is a store away for a while, or wrong for good? And how long to wait for the answer."""

import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from xray_pneumonia.errors import InputError

START = 25.0  # seconds in which a store over the network must have answered once
WRONG_CODES = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "ENDPOINT_NOT_FOUND", "NOT_FOUND", "BAD_REQUEST"})
WRONG_WORDS = {  # in what a database says -> the cure
    "password authentication failed": "check user and password",
    "no pg_hba.conf entry": "have the server let this machine in",
    "does not exist": "make the database or role first: createdb NAME",
    "out-of-date database schema": "back it up, then `mlflow db upgrade URI`, or install the newer MLflow that made it",
    "Can't locate revision": "it was made by a newer MLflow; install that one, or name another store",
    "malformed": "restore it from a backup, or move it away",
    "file is not a database": "restore it from a backup, or move it away",
    "readonly database": "make it and its folder writable, or name another store",
    "unable to open database file": "make its folder and let it be writable",
}
AGAIN = 30.0  # seconds for which a store that was away is not waited for a second time
CROWDED = ("too many clients", "connection slots are reserved", "QueuePool limit")
ROOM = "raise max_connections of the database, or lower MLFLOW_SQLALCHEMYSTORE_POOL_SIZE and the number of workers"
T = TypeVar("T")
_away: dict[str, tuple[float, str]] = {}


class StoreAway(InputError):
    """The store does not answer; it may come back."""


def masked(uri: str) -> str:
    """Hide the password of a URI."""
    return re.sub(r"(://[^:/@\s]*):[^/\s]*@", r"\1:***@", uri)


def first_line(error: BaseException) -> str:
    """Say in one line what a store said in many, without its password; with the cure where it has no room."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = masked((lines or [type(error).__name__])[0])
    core = re.search(r"\(Caused by (.*)\)$", line)  # urllib3 wraps what happened in three layers of what it tried
    said = (core.group(1) if core else line)[:300]
    return f"{said}; {ROOM}" if any(word in str(error) for word in CROWDED) else said


def asked(uri: str, ask: Callable[[], T]) -> T:
    """Ask the store something at the start of a command, when it may be away or wrong.

    Raises:
        StoreAway: it does not answer.
        InputError: it cannot be used.
    """
    shown = f"tracking.uri={masked(uri)}"
    try:
        # SQLite keeps its own time, and a first start makes tables for longer than a server may be silent.
        return ask() if uri.startswith("sqlite:") else within(START, ask, shown=shown)
    except Exception as error:  # each kind of store has its own
        refusal = error if isinstance(error, InputError) else verdict(error, shown=shown, said=first_line(error))
        if isinstance(refusal, StoreAway):
            _away[uri] = time.monotonic(), str(refusal)
        raise refusal from error


def require_not_just_away(uri: str) -> None:
    """Spare a command that asks twice the second wait.

    Raises:
        StoreAway: it did not answer a moment ago.
    """
    when, message = _away.pop(uri, (0.0, ""))
    if message and time.monotonic() - when < AGAIN:
        raise StoreAway(message)


def verdict(error: BaseException, *, shown: str, said: str) -> InputError:
    """Tell a store that is away (StoreAway) from one that is wrong.

    Args:
        error: what was raised.
        shown: the store's key and URI, fit to be printed.
        said: its message, fit to be printed.
    """
    for word, cure in WRONG_WORDS.items():
        if word in said:
            return InputError(f"{shown}: the store cannot be used: {said}; {cure}")
    if isinstance(error, ModuleNotFoundError):
        return InputError(f"{shown}: {said}; install xray-pneumonia[postgresql]")
    if getattr(error, "error_code", "") in WRONG_CODES:
        return InputError(f"{shown}: the server answers, but not as MLflow would: {said}; check address and login")
    return StoreAway(f"{shown}: the store does not answer: {said}")


def within(seconds: float, call: Callable[[], T], *, shown: str) -> T:
    """Give the call's result, or up: some drivers wait for ever.

    Raises:
        StoreAway: the time is over.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="reach", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise StoreAway(f"{shown}: the store does not answer: nothing came within {seconds:g} s")
    return results[0]
