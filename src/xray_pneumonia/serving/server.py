"""Runs the application on a socket until it is stopped; slow or silent connections are closed."""

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from xray_pneumonia.errors import InputError

HEAD_SECONDS = 10.0  # in which the head of a request must arrive
STUCK_SECONDS = 30.0  # in which a client must read some of its answer
MOST_CONNECTIONS = 200


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose request does not begin or whose head does not end in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock; where there are too many connections, the one that has been idle longest is closed."""
        super().connection_made(transport)
        self._deadline = self._stuck = self.loop.call_later(HEAD_SECONDS, self._give_up)
        others: list[Any] = [one for one in self.connections if one is not self and not one.transport.is_closing()]
        idle = [one for one in others if one._is_idle()]
        if len(others) >= MOST_CONNECTIONS and idle:
            min(idle, key=lambda one: one._deadline.when()).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._deadline.cancel()
        self._stuck.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Start the clock anew for the next request of the connection."""
        super().on_response_complete()
        self._deadline.cancel()
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def pause_writing(self) -> None:
        """Start the clock of a client that reads its answer too slowly."""
        super().pause_writing()
        self._stuck = self.loop.call_later(STUCK_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop that clock."""
        self._stuck.cancel()
        super().resume_writing()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _give_up(self) -> None:
        if self._is_idle():
            self.transport.abort()


def listen(host: str, port: int) -> socket.socket:
    """Open the port.

    Raises:
        InputError: it is taken, or there is no such address.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        cure = "port=0 takes a free one" if "use" in str(error) else "give an address of this machine"
        raise InputError(f"host={host} port={port}: {error.strerror}; {cure}") from error


def run(app: Any, listener: socket.socket) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; requests under way are answered first, for five seconds at most."""
    config = uvicorn.Config(
        app,
        http=ImpatientProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=2 * MOST_CONNECTIONS,  # answered 503; idle connections have made room before
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=2**16,
    )
    uvicorn.Server(config).run(sockets=[listener])
