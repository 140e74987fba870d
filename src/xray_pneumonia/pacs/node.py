"""Runs the DICOM node: receives films from known senders, answers quiet studies, sends the replies to the archive."""

import logging
import re
import threading
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Self

from pydicom import Dataset, config, dcmread
from pydicom.uid import ComprehensiveSRStorage, SecondaryCaptureImageStorage
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, StoragePresentationContexts, evt

from xray_pneumonia.data.images.limits import MAX_BYTES
from xray_pneumonia.errors import InputError
from xray_pneumonia.pacs.bounds import FIRST_SECONDS, SECONDS, admit, bound
from xray_pneumonia.pacs.films import Film, Films
from xray_pneumonia.pacs.settings import DicomSettings

VERIFICATION = "1.2.840.10008.1.1"  # the SOP class of C-ECHO
SUCCESS, NO_ROOM, UNCLEAR, NOT_AUTHORISED = 0x0000, 0xA700, 0xC000, 0x0124  # of PS3.4 C.4-1 and PS3.7 C
UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID")  # to which a reply refers
POLL, LONGEST_PAUSE = 1.0, 60.0  # seconds between looks; between attempts to reach the archive
UID = re.compile(r"[0-9.]{1,64}")  # with the leading zeros that old devices write
log = logging.getLogger(__name__)


class Node:
    """A DICOM node; a context manager that receives and answers until it ends.

    Args:
        settings: ports, names and times.
        host: address to listen on.
        answer: a film's file and its attributes -> the replies, encoded.
    """

    def __init__(self, settings: DicomSettings, *, host: str, answer: Callable[[Path, Dataset], list[bytes]]) -> None:
        self._settings, self._answer, self._host = settings, answer, host
        self._senders, self._archive = settings.senders(), settings.archive()
        self._films = Films(Path(settings.folder))
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._until_stopped, args=(work,), name=work.__name__, daemon=True)
            for work in (self._answer_settled, self._send_unsent)
        ]

    def __enter__(self) -> Self:
        _keep_values_out_of_logs()
        self._films.clean_up()
        entity = AE(self._settings.ae_title)
        entity.supported_contexts = StoragePresentationContexts
        for context in entity.supported_contexts:
            context.transfer_syntax = list(ALL_TRANSFER_SYNTAXES)
        entity.add_supported_context(VERIFICATION)
        entity.require_called_aet = True
        entity.require_calling_aet = sorted({title for title, _ in self._senders})
        entity.maximum_associations = 16
        entity.network_timeout = entity.dimse_timeout = SECONDS
        entity.acse_timeout = FIRST_SECONDS
        addresses = {address for _, address in self._senders}
        handlers = [(evt.EVT_CONN_OPEN, bound), (evt.EVT_C_STORE, self._store), (evt.EVT_C_ECHO, self._echo)]
        place = (self._host, self._settings.port)
        try:
            server: Any = entity.start_server(place, block=False, evt_handlers=handlers)  # type: ignore[arg-type]
        except OSError as error:
            raise InputError(f"dicom.port={self._settings.port}: {error.strerror}; name a free port") from error
        server.verify_request = partial(admit, server, addresses)
        self._server = server
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._stop.set()
        for thread in self._threads:
            thread.join(SECONDS)
        self._films.close()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.socket.getsockname()[1])

    def counts(self) -> dict[str, int]:
        """Count the films received, answered and sent."""
        return self._films.counts()

    def _known(self, event: evt.Event) -> bool:
        requestor = event.assoc.requestor
        if (str(requestor.ae_title).strip(), requestor.address) in self._senders:
            return True
        log.warning("refused a sender that dicom.allow does not name: %s", ascii(str(requestor.ae_title)))
        return False

    def _echo(self, event: evt.Event) -> int:
        return SUCCESS if self._known(event) else NOT_AUTHORISED

    def _store(self, event: evt.Event) -> int:
        """Keep a film; it is acknowledged when it is on disk."""
        connection: Any = event.assoc.dul.socket
        connection.recv.message_ends()
        if not self._known(event):
            return NOT_AUTHORISED
        try:
            data = event.encoded_dataset()
            film = dcmread(BytesIO(data), stop_before_pixels=True, specific_tags=list(UIDS))
            instance, study, *more = [str(film[name].value) for name in UIDS]
        except Exception as error:
            log.warning("refused what is no film (%s)", type(error).__name__)
            return UNCLEAR
        if len(data) > MAX_BYTES or not all(map(UID.fullmatch, (instance, study, *more))):
            return UNCLEAR
        try:
            self._films.receive(data, instance=instance, study=study)
        except OSError as error:
            log.error("a film could not be kept: %s", error.strerror)
            return NO_ROOM
        return SUCCESS

    def _until_stopped(self, work: Callable[[], bool]) -> None:
        """Repeat a piece of work, with longer pauses while it fails."""
        pause = POLL
        while not self._stop.wait(pause):
            try:
                good = work()
            except Exception as error:
                name = threading.current_thread().name
                log.error("%s failed (%s); it is tried again", name, type(error).__name__)
                good = False
            pause = POLL if good else min(2 * pause, LONGEST_PAUSE)

    def _answer_settled(self) -> bool:
        for film in self._films.settled(seconds=self._settings.settle):
            if self._stop.is_set():
                break
            path = self._films.path(film)
            try:
                replies = self._answer(path, dcmread(path, stop_before_pixels=True))
            except Exception as error:
                kind = type(error).__name__  # its text may hold a patient's data
                log.error("no reply could be written to a film (%s); it is kept in %s", kind, path)
                self._films.fail(film)
            else:
                self._films.answer(film, replies)
        return True

    def _send_unsent(self) -> bool:
        waiting = self._films.unsent()
        if not waiting:
            return True
        title, host, port = self._archive
        entity = AE(self._settings.ae_title)
        entity.network_timeout = entity.acse_timeout = entity.dimse_timeout = SECONDS
        for kind in (ComprehensiveSRStorage, SecondaryCaptureImageStorage):
            entity.add_requested_context(kind)
        association = entity.associate(host, port, ae_title=title)
        if not association.is_established:
            log.warning("the archive %s@%s:%d does not answer; %d films wait", title, host, port, len(waiting))
            return False
        try:
            return all([self._send(association, film) for film in waiting if not self._stop.is_set()])
        finally:
            association.release()

    def _send(self, association: Any, film: Film) -> bool:
        for path in self._films.replies(film):
            status = association.send_c_store(path)
            if "Status" not in status or (status.Status != SUCCESS and status.Status >> 12 != 0xB):  # Bxxx: a warning
                log.warning("the archive refused a reply: %s", hex(status.get("Status", 0)))
                return False
        self._films.close_film(film)
        return True


def _keep_values_out_of_logs() -> None:
    """Silence what libraries say of malformed values, which are a patient's."""
    config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
