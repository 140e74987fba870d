"""Writes the answer to a film as DICOM: a structured report (PS3.16 TID 1500) and a secondary capture with heat map.

Both stand in the film's study, in series of their own, with UIDs that follow from film, model and kind: what is written
again after a kill is the same object, which an archive keeps once.
"""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from highdicom import PatientSexValues, sr
from highdicom.sc import SCImage
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset, dcmwrite
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DA, TM

MAKER, OURS = "xray_pneumonia", "99XRAYPNEUMONIA"
WARNING = "Second opinion, not for diagnosis"
PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
STUDY = ("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName")
PROBABILITY = Code("probability", OURS, "Probability of finding")
INTERPRETATION = Code("363713009", "SCT", "Has interpretation")
PRESENT, ABSENT = Code("52101004", "SCT", "Present"), Code("2667000", "SCT", "Absent")
UNSURE = Code("82334004", "SCT", "Indeterminate")
FINDINGS = {"PNEUMONIA": Code("233604007", "SCT", "Pneumonia")}
PROCEDURE = Code("399208008", "SCT", "Plain chest X-ray")
VALUES = {
    "StudyDate": DA,
    "StudyTime": TM,
    "PatientBirthDate": DA,
    "PatientSex": PatientSexValues,
}  # others are left out
REPORTS, CAPTURES = 9001, 9002  # series numbers


@dataclass(frozen=True)
class Reader:
    """The model, as the device that observed: its name and version, and the class that it looks for."""

    name: str
    version: str
    finding: str


def report(film: Dataset, row: Mapping[str, Any], reader: Reader, *, comment: str) -> bytes:
    """Write the structured report of one film.

    Args:
        film: its attributes, without pixels.
        row: of `xray predict`: `decision`, `label`, `probability`; `error` and `message` where it cannot be read.
        reader: the model.
        comment: for a person.
    """
    film = _complete(film)
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=_uid(reader.version, "device"), name=reader.name, manufacturer_name=MAKER, model_name=reader.version
        ),
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=PROCEDURE,
        imaging_measurements=[_finding(film, row, reader, comment=comment)],
    )
    document = sr.ComprehensiveSR(
        evidence=[film],
        content=content[0],
        series_instance_uid=_uid(film.StudyInstanceUID, reader.version, "reports"),
        series_number=REPORTS,
        sop_instance_uid=_uid(film.SOPInstanceUID, reader.version, "report"),
        instance_number=1,
        manufacturer=MAKER,
        is_complete=True,
    )
    document.SeriesDescription = f"{MAKER} report: {WARNING}"[:64]
    return _encoded(document)


def _finding(film: Dataset, row: Mapping[str, Any], reader: Reader, *, comment: str) -> Any:
    """Write what was found, with its probability, algorithm and source."""
    found = FINDINGS.get(reader.finding.upper(), Code(reader.finding[:16], OURS, reader.finding[:64]))
    probability = 0.0 if row.get("error") else round(float(row["probability"]), 6)
    measured = sr.Measurement(name=PROBABILITY, value=probability, unit=codes.UCUM.NoUnits)
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=_uid(film.SOPInstanceUID, reader.version, "finding"), identifier="finding"
        ),
        finding_type=found,
        algorithm_id=sr.AlgorithmIdentification(name=reader.name, version=reader.version),
        measurements=[] if row.get("error") else [measured],
        qualitative_evaluations=[sr.QualitativeEvaluation(INTERPRETATION, _interpretation(row, reader))],
        source_images=[sr.SourceImageForMeasurementGroup(film.SOPClassUID, film.SOPInstanceUID)],
    )
    remark = sr.TextContentItem(
        name=codes.DCM.Comment, value=comment, relationship_type=sr.RelationshipTypeValues.CONTAINS
    )
    group[0].ContentSequence.append(remark)
    return group


def capture(film: Dataset, picture: npt.NDArray[np.uint8], reader: Reader, *, lines: list[str]) -> bytes:
    """Write a secondary capture.

    Args:
        film: its attributes, without pixels.
        picture: (H, W, 3), the film with its heat map.
        reader: the model.
        lines: of text that is burnt in, below the warning.
    """
    film = _complete(film)
    document = SCImage.from_ref_dataset(
        ref_dataset=film,
        pixel_array=_labelled(picture, [WARNING, *lines]),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # the decoder turns every film upright, whatever its own orientation
        series_instance_uid=_uid(film.StudyInstanceUID, reader.version, "captures"),
        series_number=CAPTURES,
        sop_instance_uid=_uid(film.SOPInstanceUID, reader.version, "capture"),
        instance_number=1,
        manufacturer=MAKER,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    document.BurnedInAnnotation = "YES"
    document.BodyPartExamined = "CHEST"
    document.SeriesDescription = f"{MAKER} heat map: {WARNING}"[:64]
    document.SourceImageSequence = [_reference(film)]
    return _encoded(document)


def _interpretation(row: Mapping[str, Any], reader: Reader) -> Code:
    if row.get("error") or row["decision"] == "look closer":
        return UNSURE
    return PRESENT if row["label"] == reader.finding else ABSENT


def _complete(film: Dataset) -> Dataset:
    """Copy what a reply repeats of a film, with empty values where the film has none."""
    kept = Dataset()
    for name in (*PATIENT, *STUDY, "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality"):
        setattr(kept, name, str(getattr(film, name, "") or ""))  # decoded, to be written anew
    for name, read in VALUES.items():
        try:
            read(kept[name].value)
        except ValueError:
            setattr(kept, name, "")
    kept.StudyDate, kept.StudyTime = kept.StudyDate or None, kept.StudyTime or None
    return kept


def _reference(film: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = film.SOPClassUID, film.SOPInstanceUID
    return item


def _labelled(picture: npt.NDArray[np.uint8], lines: list[str]) -> npt.NDArray[np.uint8]:
    """Burn lines of text into a bar below the picture."""
    size = max(14, picture.shape[0] // 40)
    font = ImageFont.load_default(size)
    lines = [part for line in lines for part in textwrap.wrap(line, _fitting(line, font, picture.shape[1] - size))]
    page = Image.new("RGB", (picture.shape[1], picture.shape[0] + (len(lines) + 1) * round(1.3 * size)))
    page.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        place = (size // 2, picture.shape[0] + round((0.4 + 1.3 * number) * size))
        draw.text(place, line, font=font, fill="white" if number else "yellow")
    return np.asarray(page)


def _fitting(line: str, font: Any, width: int) -> int:
    """Count the letters of a line that fit into so many pixels."""
    return max(10, int(0.95 * width * len(line) / font.getlength(line)))


def _uid(*parts: str) -> UID:
    return generate_uid(entropy_srcs=[MAKER, *parts])


def _encoded(document: Dataset) -> bytes:
    document.SpecificCharacterSet = _character_set(str(document))
    buffer = BytesIO()
    dcmwrite(buffer, document, enforce_file_format=True)
    return buffer.getvalue()


def _character_set(text: str) -> str:
    """Choose Latin-1 where it suffices, which every archive reads, else UTF-8."""
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return "ISO_IR 192"
    return "ISO_IR 100"
