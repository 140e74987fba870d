"""Name the patient of an image: from the public naming scheme, a pattern, a CSV's column or the DICOM header."""

import logging
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pandas as pd

from xray_pneumonia.errors import InputError

# Cells that name nobody, and numbers whose digits a spreadsheet cut off (1.23457e+11): all these patients would be one.
NO_PATIENT = re.compile(r"(?:nan|none|null|#?n/?a|<na>|unknown|[-?]+|\d(?:[.,]\d+)?e\+\d+)?")
COLUMN, DICOM = "column", "dicom"
NUMBER = re.compile(r"0*(\d+)(?:\.0*)?")
ZEROS = re.compile(r"(?<!\d)0+(?=\d)")
SHOWN = 5  # pairs of patients that look alike
SCHEME = re.compile(r"^(person\d+)_(bacteria|virus)_|^((?:NORMAL2-)?IM-\d+)-")
log = logging.getLogger(__name__)

Rule = Callable[[str, str], str]  # path of a file ("" where it must not be opened), its id -> patient


def by_scheme(name: str) -> tuple[str, str]:
    """Read patient and kind ("bacteria", "virus" or "") from a file's name; without a scheme it is a patient alone."""
    found = SCHEME.match(name)
    return ((found.group(1) or found.group(3)), found.group(2) or "") if found else (PurePosixPath(name).stem, "")


def rule_of(asked: str | None) -> Rule:
    """Make the rule that `data.patient` names.

    Args:
        asked: None or `column` for the name's scheme where no column says more, `dicom` for the hashed PatientID, else
            a regular expression that is searched in the id: its first group, or all of it, is the patient.
    """
    if asked is None or asked == COLUMN:
        return lambda path, name: by_scheme(PurePosixPath(name).name)[0]
    if asked == DICOM:
        return _of_dicom
    try:
        pattern = re.compile(asked)
    except re.error as error:
        raise InputError(f"data.patient={asked}: is none of {COLUMN}, {DICOM}, and no pattern: {error}") from error

    def search(path: str, name: str) -> str:
        found = pattern.search(name)
        patient = unicodedata.normalize("NFC", found[1 if pattern.groups else 0] or "").strip() if found else ""
        if not patient:
            raise InputError(f"data.patient={asked}: names no patient in {name!r}; a pattern must match every path")
        return patient

    return search


def _of_dicom(path: str, name: str) -> str:
    """Hash the PatientID; a file without one is named by the scheme, and counted by the audit where there is none."""
    from xray_pneumonia.data.images.dicom_tags import hashed_patient

    return (hashed_patient(Path(path)) if path else "") or by_scheme(PurePosixPath(name).name)[0]


def unknown(records: pd.DataFrame) -> pd.Series:
    """Tell which records have no patient but their own name."""
    names = [PurePosixPath(name) for name in records["id"]]
    own = [
        name.stem == patient and not SCHEME.match(name.name)
        for name, patient in zip(names, records["patient"], strict=True)
    ]
    return pd.Series(own, index=records.index, dtype=bool)


def warn_of_look_alikes(patients: set[str], csv: Path) -> None:
    """Name patients that only case, signs, leading zeros, a decimal point or what is invisible tell apart."""
    alike: dict[str, list[str]] = {}
    for patient in sorted(patients):
        alike.setdefault(_bare(patient), []).append(patient)
    if pairs := [names for names in alike.values() if len(names) > 1]:
        shown = "; ".join(" and ".join(map(repr, names)) for names in pairs[:SHOWN])
        log.warning("%s: %d patients have several names, or several patients look alike: %s", csv, len(pairs), shown)


def _bare(patient: str) -> str:
    """Reduce a name to the letters and numbers that a reader would call the same."""
    visible = "".join(one for one in unicodedata.normalize("NFKC", patient) if unicodedata.category(one) != "Cf")
    number = NUMBER.fullmatch(visible)
    return number.group(1) if number else ZEROS.sub("", re.sub(r"[\W_]+", " ", visible.casefold()).strip())
