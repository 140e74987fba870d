"""Read codes from DICOM tags without repeating what a tag should not hold."""

import re
from typing import Any

from pydicom import Dataset


def word(file: Dataset, tag: str) -> str:
    """Read a code of the standard in capitals; nothing where the tag is missing."""
    value: Any = file.get(tag)
    return clean("" if value is None else value).upper()


def clean(text: object) -> str:
    """Keep what a code of the standard may hold, and no more: what else stands there may be a name."""
    return re.sub(r"[^\w ./-]", "", str(text), flags=re.ASCII).strip()[:64]
