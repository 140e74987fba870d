"""Runs the DICOM node: receives films from known senders, answers quiet studies, sends the replies to the archive."""

import logging
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Self

from pydicom import Dataset, config, dcmread
from pydicom.uid import UID, ComprehensiveSRStorage, SecondaryCaptureImageStorage
from pydicom.uid import ComputedRadiographyImageStorage as CR
from pydicom.uid import DigitalXRayImageStorageForPresentation as DX
from pydicom.uid import DigitalXRayImageStorageForProcessing as RAW_DX
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, StoragePresentationContexts, evt

from xray_pneumonia.data.images.limits import MAX_BYTES
from xray_pneumonia.errors import InputError
from xray_pneumonia.pacs.bounds import FIRST_SECONDS, SECONDS, admit, bound
from xray_pneumonia.pacs.films import Film, Films
from xray_pneumonia.pacs.settings import DicomSettings

VERIFICATION = "1.2.840.10008.1.1"  # the SOP class of C-ECHO
SUCCESS, NO_ROOM, UNCLEAR = 0x0000, 0xA700, 0xC000  # of PS3.4 table B.2-1
NOT_SUPPORTED, NOT_AUTHORISED = 0x0122, 0x0124  # of PS3.7 annex C
UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID")  # to which a reply refers
RADIOGRAPHS = {CR, DX, RAW_DX}  # objects of other classes and modalities are passed over: reports, CT, our own replies
POLL, LONGEST_PAUSE = 1.0, 60.0  # seconds between looks; between attempts to reach the archive
SET_ASIDE = 600.0  # seconds until a film without a reply, or a reply that the archive refused, gets another try
SYNTAXES = [one for one in ALL_TRANSFER_SYNTAXES if not UID(one).is_deflated]  # which pydicom would inflate unbounded
UID_TEXT = re.compile(r"[0-9.]{1,64}")  # with the leading zeros that old devices write
log = logging.getLogger(__name__)


class Node:
    """A DICOM node; a context manager that receives and answers until it ends.

    Args:
        settings: ports, names and times.
        host: address to listen on.
        answer: a film's file and its attributes -> the replies, encoded.
        modalities: of films, whatever their class.
    """

    def __init__(
        self,
        settings: DicomSettings,
        *,
        host: str,
        answer: Callable[[Path, Dataset], list[bytes]],
        modalities: Collection[str],
    ) -> None:
        self._settings, self._answer, self._host = settings, answer, host
        self._modalities, self.events, self._counting = modalities, Counter[str](), threading.Lock()
        self._senders, self._archive = settings.senders(), settings.archive()
        self._films = Films(Path(settings.folder))
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._until_stopped, args=(work,), name=work.__name__, daemon=True)
            for work in (self._answer_settled, self._send_unsent)
        ]

    def __enter__(self) -> Self:
        _keep_values_out_of_logs()
        self._hook, threading.excepthook = threading.excepthook, _log_failure
        self._films.clean_up()
        entity = AE(self._settings.ae_title)
        entity.supported_contexts = StoragePresentationContexts
        for context in entity.supported_contexts:
            context.transfer_syntax = list(SYNTAXES)
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
        threading.excepthook = self._hook

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.socket.getsockname()[1])

    def counts(self) -> dict[str, int]:
        """Count the films that are received, answered, sent, failed or refused; `events` counts what happened."""
        return self._films.counts()

    def _count(self, event: str) -> None:
        with self._counting:
            self.events[event] += 1

    def _known(self, event: evt.Event) -> bool:
        requestor = event.assoc.requestor
        if (str(requestor.ae_title).strip(), requestor.address) in self._senders:
            return True
        self._count("refused")
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
            film = dcmread(BytesIO(data), stop_before_pixels=True, specific_tags=[*UIDS, "Modality"])
            instance, study, series, kind = [str(film[name].value) for name in UIDS]
        except Exception as error:
            log.warning("refused what is no film (%s)", type(error).__name__)
            return UNCLEAR
        if len(data) > MAX_BYTES or not all(map(UID_TEXT.fullmatch, (instance, study, series, kind))):
            return UNCLEAR
        if kind not in RADIOGRAPHS and film.get("Modality") not in self._modalities:
            self._count("passed_over")
            return SUCCESS  # a failure would end what else the archive forwards
        try:
            self._films.receive(data, instance=instance, study=study)
        except (OSError, sqlite3.Error) as error:
            log.error("a film could not be kept in dicom.folder: %s", error)
            return NO_ROOM
        self._count("received")
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
        self._films.try_again(seconds=SET_ASIDE)
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
                self._count("failed")
            else:
                self._films.answer(film, replies)
                self._count("answered")
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
            self._count("failed_sends")
            why = f"refuses {self._settings.ae_title}" if association.is_rejected else "does not answer"
            why = "takes neither reports nor captures" if association.rejected_contexts else why
            log.warning("the archive %s@%s:%d %s; %d films wait", title, host, port, why, len(waiting))
            return False
        try:
            return all(self._send(association, film) for film in waiting if not self._stop.is_set())
        finally:
            association.release()

    def _send(self, association: Any, film: Film) -> bool:
        """Send the replies to a film; returns whether the archive takes more."""
        for path in self._films.replies(film):
            try:
                status = association.send_c_store(path).get("Status")
            except ValueError:  # the archive has not accepted the class of the reply
                status = NOT_SUPPORTED
            if status != SUCCESS and (status is None or status >> 12 != 0xB):  # Bxxx: a warning
                self._count("failed_sends")
                log.warning("the archive refused a reply: %s", "no answer" if status is None else hex(status))
                if status is None or status >> 8 == NO_ROOM >> 8:
                    return False
                self._films.refuse(film)  # others may be taken
                return True
        self._films.close_film(film)
        self._count("sent")
        return True


def _log_failure(given: threading.ExceptHookArgs) -> None:
    """Log that a thread of pynetdicom met what it does not expect, without the text, which may quote the peer."""
    log.warning("a peer's message ended its connection (%s)", given.exc_type.__name__)


def _keep_values_out_of_logs() -> None:
    """Silence what libraries say of malformed values, which are a patient's."""
    config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
