"""Read a DICOM file that holds an upright frontal chest radiograph for presentation; refuse any other.

Patients' data stay in the file: only the tags below are read, and no message repeats a tag's text but codes of the
standard and UIDs.
"""

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset, dcmread, uid
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array

from xray_pneumonia.data.images.dicom_content import CONTENT_TAGS, orientation, require_radiograph
from xray_pneumonia.data.images.dicom_rendering import OVERLAYS, render
from xray_pneumonia.data.images.dicom_tags import clean, word
from xray_pneumonia.data.images.integrity import jpeg2000_frame, jpeg_frame, require_whole_jpeg
from xray_pneumonia.data.images.limits import (
    MAGIC,
    MAX_COLOUR,
    PREAMBLE,
    DicomRules,
    ImageError,
    require_sane_sides,
)
from xray_pneumonia.types import Gray

TAGS: list[Any] = [
    *CONTENT_TAGS, "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "VOILUTSequence", "PresentationLUTSequence", "PresentationLUTShape", "PixelData", *OVERLAYS,
]  # fmt: skip
NATIVE = {uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian}
JPEG = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1}
JPEG_LS, JPEG2000 = {uid.JPEGLSLossless, uid.JPEGLSNearLossless}, {uid.JPEG2000Lossless, uid.JPEG2000}
COMPRESSED = JPEG | JPEG_LS | JPEG2000 | {uid.RLELossless}
COLOURS = {"RGB", "YBR_FULL", "YBR_FULL_422"}
# The preamble holds zeros, or the start of a TIFF for those who read the file as one.
TIFF = (b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class Radiograph:
    """One radiograph: `pixels` (H, W) uint8, bright is dense, upright; `photometric` is what the file says.

    `notes` say what was decided: "mirrored_back", "turned_upright", "contradictory_lut".
    """

    pixels: Gray
    photometric: str
    notes: tuple[str, ...] = ()


def read_radiograph(data: bytes, *, rules: DicomRules) -> Radiograph:
    """Render a DICOM file.

    Without VOI LUT and window the darkest value becomes 0 and the brightest 255; padding counts as neither and is
    black, and so do the 0.5 % of the pixels at either end where they take up most of the range.

    Args:
        data: the bytes of a file with the prefix DICM.
        rules: which modalities, views, body parts and preambles are read.

    Raises:
        ImageError: the file is damaged, no single-frame frontal chest radiograph, or cannot be decoded here.
    """
    _require_harmless(data, rules)
    try:
        file = dcmread(BytesIO(data), specific_tags=TAGS)
        require_radiograph(file, rules)
        _require_layout(file)
        _require_pixels(file)
        decoded = _decoded(file)
        pixels, notes = (_gray(decoded), ()) if file.SamplesPerPixel == 3 else render(file, decoded)
        pixels, turned = _upright(pixels, file)
        return Radiograph(pixels, str(file.PhotometricInterpretation), (*notes, *turned))
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # pydicom raises many kinds, and quotes the file in them
        raise ImageError("damaged_dicom", f"its DICOM tags or pixels are damaged ({type(error).__name__})") from None


def _require_harmless(data: bytes, rules: DicomRules) -> None:
    """Refuse by preamble and file meta information, before the rest is parsed or inflated."""
    if not rules.any_preamble and data[:PREAMBLE].strip(b"\0") and not data.startswith(TIFF):
        raise ImageError(
            "bad_preamble",
            "its first 128 bytes are neither zeros nor TIFF and may hide a program; any_preamble=true reads it",
        )
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
            f"transfer syntax {clean(syntax)} is not read; convert it to Explicit VR Little Endian",
        )


def _require_layout(file: Dataset) -> None:
    photometric, samples = word(file, "PhotometricInterpretation"), file.SamplesPerPixel
    if photometric not in {1: {"MONOCHROME1", "MONOCHROME2"}, 3: COLOURS}.get(samples, set()):
        raise ImageError("unsupported_mode", f"{photometric or 'unknown colours'}; MONOCHROME1 and 2 are read")
    bits = (file.BitsAllocated, file.BitsStored, file.HighBit)
    if (
        bits[0] not in {8, 16}
        or not 1 <= bits[1] <= bits[0]
        or bits[2] != bits[1] - 1
        or (samples == 3 and bits[1] != 8)
    ):
        raise ImageError("unsupported_mode", f"bits allocated, stored, high: {bits}; 8 or 16, up to that, one less")


def _require_pixels(file: Dataset) -> None:
    if "PixelData" not in file:
        raise ImageError("bad_pixel_data", "holds no pixels")
    width, height = int(file.Columns), int(file.Rows)
    require_sane_sides(width, height)
    syntax = file.file_meta.TransferSyntaxUID
    if syntax in JPEG | JPEG_LS | JPEG2000:
        _require_jpeg(file, syntax)
    halved = word(file, "PhotometricInterpretation") == "YBR_FULL_422"
    samples = 2 if halved else file.SamplesPerPixel
    expected, found = width * height * samples * file.BitsAllocated // 8, len(file.PixelData)
    if syntax in NATIVE and found != expected + expected % 2:  # values are padded to even lengths
        raise ImageError("bad_pixel_data", f"{height} rows of {width} pixels take {expected} bytes, found {found}")
    if _plugin(syntax) not in {"", *get_decoder(syntax).available_plugins}:
        raise ImageError(
            "missing_decoder",
            f"transfer syntax {syntax} ({syntax.name}) needs a decoder: pip install 'xray-pneumonia[dicom]'",
        )


def _require_jpeg(file: Dataset, syntax: uid.UID) -> None:
    """Compare the header of the JPEG inside with the tags, and look for damage."""
    frame = get_frame(file.PixelData, 0, number_of_frames=1)
    header = (jpeg2000_frame if syntax in JPEG2000 else jpeg_frame)(frame)
    if header.components != file.SamplesPerPixel:
        raise ImageError(
            "unsupported_mode",
            f"its JPEG has {header.components} components, SamplesPerPixel says {file.SamplesPerPixel}",
        )
    if (header.width, header.height) != (file.Columns, file.Rows):
        raise ImageError(
            "bad_pixel_data",
            f"its JPEG has {header.width} x {header.height} pixels, the tags say {file.Columns} x {file.Rows}",
        )
    if header.signed not in {None, bool(file.PixelRepresentation)}:
        raise ImageError("bad_pixel_data", "its JPEG 2000 and PixelRepresentation disagree on signed values")
    if syntax == uid.JPEGExtended12Bit and header.bits > 8:
        raise ImageError(
            "missing_decoder",
            f"{header.bits} bits of transfer syntax {syntax} (JPEG Extended); the decoder reads 8 of this syntax; "
            "convert the file to Explicit VR Little Endian, for example with dcmdjpeg of dcmtk",
        )
    if header.bits == 8 and syntax in {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit}:
        require_whole_jpeg(frame)


def _plugin(syntax: str) -> str:
    """Name what decodes a syntax: one program for each, so that no machine gives other pixels; none if it is native."""
    if syntax in NATIVE:
        return ""
    return "pydicom" if syntax == uid.RLELossless else "gdcm"


def _decoded(file: Dataset) -> npt.NDArray[Any]:
    """Decode the pixels, (H, W) or (H, W, 3) RGB."""
    plugin = _plugin(file.file_meta.TransferSyntaxUID)
    values = pixel_array(file, decoding_plugin=plugin, correct_unused_bits=False)  # `render` looks at them
    if values.shape[:2] != (file.Rows, file.Columns):
        raise ImageError("bad_pixel_data", f"decoded to {values.shape}, the header says {file.Rows} x {file.Columns}")
    return values


def _gray(colours: Gray) -> Gray:
    """Take a colour picture whose channels are equal, as with PNG and JPEG."""
    if float(np.ptp(colours[::4, ::4].astype(np.int16), axis=2).mean()) > MAX_COLOUR:
        raise ImageError("not_xray_like", "is a colour picture; an X-ray has equal channels")
    return np.asarray(Image.fromarray(np.ascontiguousarray(colours)).convert("L"))


def _upright(pixels: Gray, file: Dataset) -> tuple[Gray, tuple[str, ...]]:
    """Turn a film so that rows run to the patient's left and columns to the feet (PS3.3 C.7.6.1.1.1)."""
    directions = orientation(file)
    if not directions:
        return pixels, ()
    across, down = directions[0][0], directions[1][0]
    notes: list[str] = []
    if across in "HF" and down in "LR":
        pixels, across, down = pixels.T, down, across
        notes.append("turned_upright")
    if down == "H":
        pixels = pixels[::-1]
        notes = ["turned_upright"]
    if across == "R":
        pixels = pixels[:, ::-1]
        notes.append("mirrored_back")
    return np.ascontiguousarray(pixels), tuple(notes)
