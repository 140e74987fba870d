"""Bounds what a peer of the DICOM node may cost before it is known who it is: address, number, size and time."""

import logging
import socket
import time
from collections.abc import Collection
from typing import Any

from pynetdicom import evt

from xray_pneumonia.data.images.limits import MAX_BYTES

LONGEST_PDU = 2**20  # bytes; the longest that peers have a reason to send names 128 contexts with all their syntaxes
SECONDS = 30.0  # in which a PDU must arrive, and of silence, after which a connection is closed
FIRST_SECONDS = 5.0  # in which a connection must say who it is
MOST_CONNECTIONS = 32
log = logging.getLogger(__name__)


class Bounded:
    """Reads from a peer's socket, in place of pynetdicom's `recv`, which takes up to 4 GB for however long.

    Args:
        peer: the socket.
        association: of the peer, once it has said who it is.
    """

    def __init__(self, peer: socket.socket, association: Any) -> None:
        self._peer, self._association, self._bytes = peer, association, 0

    def __call__(self, count: int) -> bytearray:
        """Read so many bytes, or as many as there are until the peer closes.

        Raises:
            OSError: they are too many or take too long; the connection is closed.
        """
        end, data = time.monotonic() + (SECONDS if self._association.is_established else FIRST_SECONDS), bytearray()
        self._bytes += count
        while len(data) < count:
            left = end - time.monotonic()
            if count > LONGEST_PDU or self._bytes > MAX_BYTES + LONGEST_PDU or left <= 0:
                self._peer.shutdown(socket.SHUT_RDWR)
                raise OSError("a peer sends too much or too slowly")
            self._peer.settimeout(left)
            piece = self._peer.recv(min(count - len(data), 2**16))
            if not piece:
                break
            data += piece
        return data

    def message_ends(self) -> None:
        """Count the bytes of the next message anew."""
        self._bytes = 0


def bound(event: evt.Event) -> None:
    """Bound what a connection sends."""
    connection: Any = event.assoc.dul.socket
    connection.recv = Bounded(connection.socket, event.assoc)


def admit(server: Any, addresses: Collection[str], request: socket.socket, peer: tuple[Any, ...]) -> bool:
    """Tell whether a connection is from a known address and not one too many; others are closed."""
    crowded = len(server.active_associations) >= MOST_CONNECTIONS
    if crowded or peer[0] not in addresses:
        log.warning("closed a connection: %s", "too many" if crowded else "dicom.allow does not name its address")
        return False
    return True
