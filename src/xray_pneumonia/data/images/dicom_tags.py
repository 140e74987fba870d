"""Read codes from DICOM tags without repeating what a tag should not hold, and a patient without the name."""

import hashlib
import logging
import re
from pathlib import Path
from typing import Any

from pydicom import Dataset, config, dcmread, uid
from pydicom.filereader import read_file_meta_info

config.settings.reading_validation_mode = config.IGNORE  # its warnings quote what a tag says
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # and so does its log


def word(file: Dataset, tag: str) -> str:
    """Read a code of the standard in capitals; nothing where the tag is missing."""
    value: Any = file.get(tag)
    return clean("" if value is None else value).upper()


def clean(text: object) -> str:
    """Keep what a code of the standard may hold, and no more: what else stands there may be a name."""
    return re.sub(r"[^\w ./-]", "", str(text), flags=re.ASCII).strip()[:64]


def hashed_patient(path: Path) -> str:
    """Hash the PatientID of a file, 16 hex digits; empty where there is none, or no DICOM file that can be read.

    The hash keeps names out of tables and pages; who has a list of the IDs can still find each again.
    """
    try:
        if not path.is_file() or read_file_meta_info(path).TransferSyntaxUID == uid.DeflatedExplicitVRLittleEndian:
            return ""  # a pipe would block, and a few deflated bytes may fill the memory
        named = str(dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"]).get("PatientID") or "").strip()
    except Exception:  # pydicom raises many kinds; decoding the file says what is wrong with it
        return ""
    return hashlib.sha256(named.encode()).hexdigest()[:16] if named else ""
