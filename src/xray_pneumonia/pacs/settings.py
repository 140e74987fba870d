"""Define the config group `dicom` of `xray serve`: where films come from and where the replies go."""

import re
import socket
from dataclasses import dataclass

from xray_pneumonia.errors import InputError
from xray_pneumonia.types import NonNegative, Port, Text

TITLE = re.compile(r"[^\s\\](?:[^\n\r\t\\]{0,14}[^\s\\])?")  # PS3.5, 6.2: VR AE
SENDER = re.compile(r"([^@\s\\]{1,16})@([^@\s]+)")
RECEIVER = re.compile(r"([^@\s\\]{1,16})@([^@\s]+):(\d{1,5})")


@dataclass(frozen=True, kw_only=True)
class DicomSettings:
    """The group `dicom` of serve.yaml."""

    port: Port | None  # at which films are received; None: none are
    ae_title: Text  # our name
    allow: list[Text]  # senders, as AE@HOST
    reply_to: Text | None  # the archive that gets the replies, as AE@HOST:PORT
    settle: NonNegative  # seconds after which a study that received nothing is answered
    folder: Text  # of the films under way

    def senders(self) -> set[tuple[str, str]]:
        """Read `allow` as pairs of AE title and address.

        Raises:
            InputError: it is empty, an entry is no AE@HOST, or there is no such host.
        """
        found = [SENDER.fullmatch(one) for one in self.allow]
        if not found or None in found:
            raise InputError(f"dicom.allow={self.allow}: name each sender as AE@HOST; others are refused")
        return {(one[1], address) for one in found if one for address in _addresses(one[2])}

    def archive(self) -> tuple[str, str, int]:
        """Read `reply_to`.

        Raises:
            InputError: it is missing or no AE@HOST:PORT, or our own name is none.
        """
        if not TITLE.fullmatch(self.ae_title):
            raise InputError(f"dicom.ae_title={self.ae_title}: has at most 16 characters, no backslash among them")
        found = RECEIVER.fullmatch(self.reply_to or "")
        if not found or not 0 < int(found[3]) < 2**16:
            raise InputError(f"dicom.reply_to={self.reply_to}: name the archive as AE@HOST:PORT")
        return found[1], found[2], int(found[3])


def _addresses(host: str) -> set[str]:
    try:
        return {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise InputError(f"dicom.allow: {host}: {error.strerror}; name a host that exists, or its address") from error
