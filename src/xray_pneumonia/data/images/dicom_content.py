"""Refuse DICOM files that by their tags hold no upright frontal chest film of a patient, for presentation.

What the standard has codes for decides; where a file lacks them, the texts do that people write instead.
"""

import re
from typing import Any

import numpy as np
from pydicom import Dataset, uid

from xray_pneumonia.data.images.dicom_tags import clean, word
from xray_pneumonia.data.images.limits import DicomRules, ImageError

SERIES_TEXTS = ("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription")
STUDY_TEXTS = ("StudyDescription", "RequestedProcedureDescription", "PerformedProcedureStepDescription")
CONTENT_TAGS = [
    "SOPClassUID", "Modality", "PresentationIntentType", "NumberOfFrames", "ViewPosition", "ViewCodeSequence",
    "PatientOrientation", "BodyPartExamined", "AnatomicRegionSequence", "QualityControlImage",
    "PatientSpeciesDescription", "PatientSpeciesCodeSequence", *SERIES_TEXTS, *STUDY_TEXTS,
]  # fmt: skip
# Words of ViewPosition that exclude a frontal film (PS3.3 C.8.1.1), whatever the other words are.
NOT_FRONTAL = {"LL", "RL", "LLD", "RLD", "LLO", "RLO", "LAT", "LATERAL", "OBLIQUE", "DECUBITUS"}
FRONTAL_CODES = {"272479007", "399348003", "399033003", "R-40888", "R-10206", "R-10214"}  # PA, AP, frontal (CID 4010)
# Defined terms of Modality, ViewPosition and BodyPartExamined (PS3.3 C.7.3.1.1.1, C.8.1.1; PS3.16 Annex L).
CODES = NOT_FRONTAL | {
    "CR", "DX", "CT", "MR", "US", "MG", "XA", "RF", "NM", "PT", "OT", "IO", "PX", "SC", "ES", "XC",
    "ABDOMEN", "PELVIS", "SKULL", "HEAD", "NECK", "SPINE", "CSPINE", "TSPINE",
    "LSPINE", "BREAST", "SHOULDER", "CLAVICLE", "ARM", "HUMERUS", "ELBOW", "FOREARM", "WRIST", "HAND", "HIP", "LEG",
    "FEMUR", "KNEE", "ANKLE", "FOOT", "RIB", "STERNUM", "EXTREMITY",
}  # fmt: skip
OTHER_PARTS = {  # words of descriptions
    "ABDOMEN", "ABD", "KUB", "PELVIS", "SKULL", "SPINE", "LSPINE", "CSPINE", "TSPINE", "BREAST", "ELBOW", "FOREARM",
    "WRIST", "HAND", "HIP", "FEMUR", "KNEE", "ANKLE", "FOOT",
}  # fmt: skip
# SNOMED: thorax and lung; homo sapiens
CHEST_CODES = {"51185008", "816094009", "43799004", "302551006", "39607008", "T-D3000", "T-28000"}
HUMAN = {"337915000", "L-85B00"}
FOR_PROCESSING = {uid.DigitalXRayImageStorageForProcessing, uid.DigitalMammographyXRayImageStorageForProcessing}


def require_radiograph(file: Dataset, rules: DicomRules) -> None:
    """Refuse what is no upright frontal chest film for presentation, as far as its tags say."""
    modality, view, part = (word(file, tag) for tag in ("Modality", "ViewPosition", "BodyPartExamined"))
    if modality not in rules.modalities:
        raise ImageError("wrong_modality", f"Modality {_told(modality)}; {', '.join(rules.modalities)} are read")
    if file.get("SOPClassUID") in FOR_PROCESSING or word(file, "PresentationIntentType") == "FOR PROCESSING":
        raise ImageError("for_processing", "holds raw values FOR PROCESSING; export the film FOR PRESENTATION")
    if word(file, "QualityControlImage") == "YES":
        raise ImageError("no_patient", "is an image for quality control, of no patient")
    species = word(file, "PatientSpeciesDescription")
    codes = {word(item, "CodeValue") for item in file.get("PatientSpeciesCodeSequence") or []}
    if not codes <= HUMAN or (species and not {"HOMO", "HUMAN"} & _words(species)):
        raise ImageError("no_patient", "is of an animal, as its species says; the model knows children")
    if int(file.get("NumberOfFrames") or 1) != 1:
        raise ImageError("multi_frame", f"holds {int(file.NumberOfFrames)} frames")
    words = _words(view)
    if words and (words & NOT_FRONTAL - set(rules.views) or not words & set(rules.views)):
        raise ImageError("wrong_view", f"ViewPosition {_told(view)}; frontal films are read: {', '.join(rules.views)}")
    _require_frontal(file, rules, known=bool(words))
    if any(direction[:1] in {"A", "P"} for direction in orientation(file)):
        raise ImageError("wrong_view", "PatientOrientation is that of a lateral film; the model knows frontal ones")
    if part and not any(each in part for each in rules.body_parts):
        raise ImageError("wrong_body_part", f"BodyPartExamined {_told(part)}; the model knows the chest")
    if not part:
        _require_chest(file, rules)


def _require_frontal(file: Dataset, rules: DicomRules, *, known: bool) -> None:
    """Refuse by the view's code, by its meaning where that is of no standard, by descriptions where both lack."""
    lateral = NOT_FRONTAL - set(rules.views)
    for item in file.get("ViewCodeSequence") or []:
        code, meaning = word(item, "CodeValue"), _words(_text(item, "CodeMeaning"))
        if code in _view_codes() - FRONTAL_CODES or (code not in FRONTAL_CODES and meaning & lateral):
            name = code if code in _view_codes() else "names no frontal view"
            raise ImageError("wrong_view", f"ViewCodeSequence {name}; the model knows frontal films, AP and PA")
        known = known or code in FRONTAL_CODES
    for tag in () if known else SERIES_TEXTS:
        said = _words(_text(file, tag))
        if said & lateral and not said & {*rules.views, "FRONTAL"}:
            raise ImageError("wrong_view", f"{tag} names no frontal view, and ViewPosition is missing")


def _require_chest(file: Dataset, rules: DicomRules) -> None:
    """Refuse a film without BodyPartExamined by its region's code, or by descriptions that name another part."""
    for item in file.get("AnatomicRegionSequence") or []:
        meaning = _text(item, "CodeMeaning")
        if word(item, "CodeValue") not in CHEST_CODES and not any(each in meaning for each in rules.body_parts):
            raise ImageError("wrong_body_part", "AnatomicRegionSequence names no chest, which is what the model knows")
    said = " ".join(_text(file, tag) for tag in (*SERIES_TEXTS, *STUDY_TEXTS))
    if _words(said) & OTHER_PARTS and not any(each in said for each in (*rules.body_parts, "CXR")):
        raise ImageError("wrong_body_part", "its descriptions name another part than the chest")


def _text(file: Dataset, tag: str) -> str:
    """Read what somebody wrote, in capitals; no message repeats it."""
    return str(file.get(tag) or "").upper()


def _words(text: str) -> set[str]:
    return set(re.split(r"[^A-Z0-9]+", text)) - {""}


def _view_codes() -> set[str]:
    """List the codes of SNOMED that name a view (PS3.16 CID 4010), old and new."""
    from pydicom.sr._cid_dict import cid_concepts
    from pydicom.sr._concepts_dict import concepts
    from pydicom.sr._snomed_dict import mapping

    views: Any = concepts["SCT"]
    new = {code for name in cid_concepts[4010]["SCT"] for code in views[name]}
    return new | {old for old in (mapping["SCT"].get(code) for code in new) if old}


def _told(word: str) -> str:
    """Repeat a code of the standard and nothing else: what a tag should not hold may be a name."""
    return word if word in CODES else "is none of the usual codes" if word else "is missing"


def orientation(file: Dataset) -> list[str]:
    """Read the directions of rows and columns, such as L and F; empty where they are not given."""
    found = [clean(each).upper() for each in np.ravel(file.get("PatientOrientation") or [])]
    return found if len(found) == 2 and all(found) else []
