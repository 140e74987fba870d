"""The only door to pydicom: a single-frame radiograph -> 8-bit gray, in one fixed order of steps.

Stored values, then the modality LUT or rescale slope and intercept, then the VOI LUT or window, then
MONOCHROME1 inverted (DICOM PS3.3, C.7.6.3.1.2, C.11.1 and C.11.2). Stored values have at most 16 bits,
so the steps are taken once on all possible values and the picture is looked up in the result.

Patients' data stay in the file: only the tags below are read, and no message repeats a tag's text but
modality, view, body part and UIDs.
"""

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, config, dcmread, uid
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi
from pydicom.pixels.utils import pixel_array

from xray_pneumonia.data.images.limits import MAGIC, PREAMBLE, ImageError, require_sane_sides

config.settings.reading_validation_mode = config.IGNORE  # its warnings quote what a tag says
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # and so does its log

FRONTAL = {"", "AP", "PA"}
CHEST = re.compile("CHEST|THORAX|LUNG|^$")
# Defined terms of Modality, ViewPosition and BodyPartExamined (PS3.3 C.7.3.1.1.1, C.8.1.1; PS3.16 Annex L).
CODES = {
    "CR", "DX", "CT", "MR", "US", "MG", "XA", "RF", "NM", "PT", "OT", "IO", "PX", "SC", "ES", "XC", "LL", "RL", "LLD",
    "RLD", "LLO", "RLO", "LATERAL", "ABDOMEN", "PELVIS", "SKULL", "HEAD", "NECK", "SPINE", "CSPINE", "TSPINE",
    "LSPINE", "BREAST", "SHOULDER", "CLAVICLE", "ARM", "HUMERUS", "ELBOW", "FOREARM", "WRIST", "HAND", "HIP", "LEG",
    "FEMUR", "KNEE", "ANKLE", "FOOT", "RIB", "STERNUM", "EXTREMITY",
}  # fmt: skip
TAGS = [
    "Modality", "ViewPosition", "BodyPartExamined", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "VOILUTSequence", "PixelData",
]  # fmt: skip
NATIVE = {uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian}
COMPRESSED = {
    uid.RLELossless, uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1,
    uid.JPEGLSLossless, uid.JPEGLSNearLossless, uid.JPEG2000Lossless, uid.JPEG2000,
}  # fmt: skip
# The preamble holds zeros, or the start of a TIFF for those who read the file as one.
TIFF = (b"II*\0", b"MM\0*")

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Film:
    """One radiograph: `pixels` (rows, columns) uint8, bright is dense; `photometric` is what the file said."""

    pixels: npt.NDArray[np.uint8]
    photometric: str


def read_film(data: bytes, *, modalities: Collection[str]) -> Film:
    """Render a DICOM file.

    Without VOI LUT and window, the darkest value in the picture becomes 0 and the brightest 255.

    Args:
        data: the bytes of a file with the prefix DICM.
        modalities: the modalities that are read.

    Raises:
        ImageError: the file is damaged, no single-frame frontal chest radiograph, or cannot be decoded here.
    """
    _require_harmless(data)
    try:
        film = dcmread(BytesIO(data), specific_tags=TAGS)
        _require_radiograph(film, modalities)
        _require_gray(film)
        _require_pixels(film)
        table, stored = _shades(film), _stored(film)
        return Film(_rendered(film, table, stored), str(film.PhotometricInterpretation))
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # pydicom raises many kinds, and quotes the file in them
        raise ImageError("damaged_dicom", f"its DICOM tags or pixels are damaged ({type(error).__name__})") from None


def _require_harmless(data: bytes) -> None:
    """Refuse by preamble and file meta information, before the rest is parsed or inflated."""
    if data[:PREAMBLE].strip(b"\0") and not data.startswith(TIFF):
        raise ImageError("bad_preamble", "its first 128 bytes are neither zeros nor TIFF; they may hide a program")
    try:
        after = BytesIO(data[PREAMBLE + len(MAGIC) : PREAMBLE + 2**16])
        meta = read_dataset(after, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        stored, syntax = meta.get("MediaStorageSOPClassUID"), meta.get("TransferSyntaxUID")
    except Exception as error:
        raise ImageError("damaged_dicom", f"its file meta information is damaged ({type(error).__name__})") from None
    if stored == uid.MediaStorageDirectoryStorage:
        raise ImageError("dicomdir", "is a DICOMDIR, a list of files; name the files or their folder")
    if syntax is None:
        raise ImageError("damaged_dicom", "names no transfer syntax")
    if syntax not in NATIVE | COMPRESSED:
        raise ImageError(
            "unsupported_syntax",
            f"transfer syntax {_clean(syntax)} is not read; convert it to Explicit VR Little Endian",
        )


def _require_radiograph(film: Dataset, modalities: Collection[str]) -> None:
    modality, view = _word(film, "Modality"), _word(film, "ViewPosition")
    part = _word(film, "BodyPartExamined")
    if modality not in modalities:
        raise ImageError("wrong_modality", f"Modality {_told(modality)}; {', '.join(modalities)} are read")
    if int(film.get("NumberOfFrames") or 1) != 1:
        raise ImageError("multi_frame", f"holds {int(film.NumberOfFrames)} frames")
    if view not in FRONTAL:
        raise ImageError("wrong_view", f"ViewPosition {_told(view)}; the model knows frontal films, AP and PA")
    if not CHEST.search(part):
        raise ImageError("wrong_body_part", f"BodyPartExamined {_told(part)}; the model knows the chest")


def _told(word: str) -> str:
    """Repeat a code of the standard and nothing else: what a tag should not hold may be a name."""
    return word if word in CODES else "is none of the usual codes" if word else "is missing"


def _require_gray(film: Dataset) -> None:
    photometric = _word(film, "PhotometricInterpretation")
    if photometric not in {"MONOCHROME1", "MONOCHROME2"} or film.SamplesPerPixel != 1:
        raise ImageError("unsupported_mode", f"{photometric or 'unknown colours'}; MONOCHROME1 and 2 are read")
    bits = (film.BitsAllocated, film.BitsStored, film.HighBit)
    if bits[0] not in {8, 16} or not 1 <= bits[1] <= bits[0] or bits[2] != bits[1] - 1:
        raise ImageError("unsupported_mode", f"bits allocated, stored, high: {bits}; 8 or 16, up to that, one less")


def _require_pixels(film: Dataset) -> None:
    if "PixelData" not in film:
        raise ImageError("bad_pixel_data", "holds no pixels")
    width, height = int(film.Columns), int(film.Rows)
    require_sane_sides(width, height)
    syntax = film.file_meta.TransferSyntaxUID
    expected, found = width * height * film.BitsAllocated // 8, len(film.PixelData)
    if syntax in NATIVE and found != expected + expected % 2:  # values are padded to even lengths
        raise ImageError("bad_pixel_data", f"{height} rows of {width} pixels take {expected} bytes, found {found}")
    if _plugin(syntax) not in {"", *get_decoder(syntax).available_plugins}:
        raise ImageError(
            "missing_decoder",
            f"transfer syntax {syntax} ({syntax.name}) needs a decoder: pip install 'xray-pneumonia[dicom]'",
        )


def _plugin(syntax: str) -> str:
    """Name what decodes a syntax: one program for each, so that no machine gives other pixels; none if it is native."""
    if syntax in NATIVE:
        return ""
    return "pydicom" if syntax == uid.RLELossless else "gdcm"


def _shades(film: Dataset) -> Values:
    """Map every value that could be stored, in order, by modality LUT or rescale slope and intercept."""
    low = -(2 ** (film.BitsStored - 1)) if film.PixelRepresentation else 0
    shades = apply_modality_lut(np.arange(low, low + 2**film.BitsStored), film)
    if not np.isfinite(shades).all():
        raise ImageError("damaged_dicom", "rescale slope or intercept is no finite number")
    return np.asarray(shades, np.float64)


def _stored(film: Dataset) -> npt.NDArray[np.int64]:
    """Decode the pixels: for each its place in `_shades`; bits beyond those stored (old overlays) are dropped."""
    values = pixel_array(film, decoding_plugin=_plugin(film.file_meta.TransferSyntaxUID))
    if values.shape != (film.Rows, film.Columns):
        raise ImageError("bad_pixel_data", f"decoded to {values.shape}, the header says {film.Rows} x {film.Columns}")
    places = values.astype(np.int64) & (2**film.BitsStored - 1)
    return np.asarray(places ^ (2 ** (film.BitsStored - 1)) if film.PixelRepresentation else places)


def _rendered(film: Dataset, shades: Values, stored: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    if film.get("VOILUTSequence"):
        curve = apply_voi(np.rint(shades).astype(np.int64), film).astype(np.float64)
        light = _stretched(curve, curve)
    elif film.get("WindowCenter") not in (None, "") and film.get("WindowWidth") not in (None, ""):
        centre, width = (float(np.ravel(film[tag].value)[0]) for tag in ("WindowCenter", "WindowWidth"))
        light = windowed(shades, centre, width, function=_word(film, "VOILUTFunction") or "LINEAR")
    else:
        light = _stretched(shades, shades[stored])
    if film.PhotometricInterpretation == "MONOCHROME1":
        light = 1 - light
    return np.rint(255 * light).astype(np.uint8)[stored]


def windowed(values: Values, centre: float, width: float, *, function: str) -> Values:
    """Map values to 0 (black) .. 1 (white) by a window, PS3.3 C.11.2.1.2 and C.11.2.1.3.

    Raises:
        ImageError: the window or its function is not one of the standard's.
    """
    least = 1.0 if function == "LINEAR" else np.nextafter(0, 1)
    if not (np.isfinite(centre) and np.isfinite(width) and width >= least):
        raise ImageError("bad_window", f"window centre {centre:g}, width {width:g}, function {function}")
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700))))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if function == "LINEAR":
        if width == 1:
            return np.asarray(values > centre - 0.5, np.float64)
        return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    raise ImageError("bad_window", f"window function {_clean(function)}; LINEAR, LINEAR_EXACT and SIGMOID are known")


def _stretched(values: Values, present: Values) -> Values:
    low, high = float(present.min()), float(present.max())
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def _word(film: Dataset, tag: str) -> str:
    value: Any = film.get(tag)
    return _clean("" if value is None else value).upper()


def _clean(text: object) -> str:
    """Keep what a code of the standard may hold, and no more: whatever else stands there is not repeated."""
    return re.sub(r"[^\w ./-]", "", str(text), flags=re.ASCII).strip()[:64]
